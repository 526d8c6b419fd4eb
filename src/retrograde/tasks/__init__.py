"""Small real tasks to look at gradients on. They need the `demo` extra, for Lightning."""
