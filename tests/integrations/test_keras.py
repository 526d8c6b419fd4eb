"""What is said of Keras where it is not there, or does not run on torch; no Keras is needed."""

import sys
import types

import pytest

import retrograde
from retrograde.errors import ArgumentError
from support.processes import run

CALLBACK = "from retrograde.integrations.keras import MonitorCallback; MonitorCallback()"


def keras_on(backend):
    """As much of Keras as is asked."""
    keras = types.ModuleType("keras")
    keras.config = types.SimpleNamespace(backend=lambda: backend)
    keras.backend = types.SimpleNamespace(backend=lambda: backend)
    keras.callbacks = types.SimpleNamespace(Callback=object)
    return keras


def test_a_model_on_another_backend_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", keras_on("jax"))
    kind = type("Sequential", (), {"__module__": "keras.src.models.sequential"})
    words = "got a Sequential of keras on its jax backend, .* KERAS_BACKEND=torch"
    with pytest.raises(ArgumentError, match=words), retrograde.record(kind()):
        pass


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("sys.modules['keras'] = None", "pip install 'retrograde[keras]'"),
        ("sys.modules['keras'] = keras_on('jax')", "Keras runs on its jax backend"),
    ],
)
def test_the_callback_says_what_it_needs(program, said, tmp_path):
    code = f"import sys; sys.path.append({__file__.rpartition('/')[0]!r})\n"
    code += f"from test_keras import keras_on\n{program}\n{CALLBACK}"
    (tmp_path / "program.py").write_text(code)
    done = run(tmp_path / "program.py")
    assert said in done.stderr
