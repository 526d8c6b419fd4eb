"""Recurrent PPO of sb3-contrib, as it is: states set to zero where an episode begins."""

import pytest
import torch

sb3_contrib = pytest.importorskip(
    "sb3_contrib", reason="run `make test-integrations` (sb3-contrib)"
)

import gymnasium  # noqa: E402
import numpy as np  # noqa: E402
from plain_loop import EXACT, agrees, plain_loop  # noqa: E402
from stable_baselines3.common.torch_layers import FlattenExtractor  # noqa: E402

import retrograde  # noqa: E402
from retrograde import Monitor  # noqa: E402

# Their warnings and those of what they bring are not ours to make errors of.
pytestmark = pytest.mark.filterwarnings("default")


class Recall(gymnasium.Env):
    """The first observation of an episode says which action earns a reward at its end."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue, self.left = int(self.np_random.integers(2)), int(self.np_random.integers(3, 8))
        return np.array([2 * self.cue - 1, 1], np.float32), {}

    def step(self, action):
        self.left -= 1
        over = self.left == 0
        return np.zeros(2, np.float32), float(over and action == self.cue), over, False, {}


class Double(FlattenExtractor):
    """They turn observations into float32; from here on it is float64."""

    def forward(self, observations):
        return super().forward(observations).double()


def agent(**options):
    settings = {"lstm_hidden_size": 4, "net_arch": [4]} | options
    return sb3_contrib.RecurrentPPO(
        "MlpLstmPolicy",
        Recall(),
        n_steps=24,
        batch_size=12,
        n_epochs=5,
        seed=0,
        policy_kwargs=settings,
        device="cpu",
    )


def rollout(policy):
    """What they train on: padded sequences, with the steps at which an episode begins."""
    random = torch.Generator().manual_seed(0)
    sequences, length = 3, 10
    observations = torch.randn(sequences * length, 2, generator=random).double()
    actions = torch.randint(2, (sequences * length,), generator=random)
    starts = torch.zeros(sequences, length, dtype=torch.float64)
    starts[:, 0], starts[0, 4], starts[1, 7] = 1, 1, 1
    layers = policy.lstm_actor.num_layers
    states = [torch.randn(layers, sequences, 4, generator=random).double() for _ in range(4)]
    kinds = sb3_contrib.common.recurrent.type_aliases.RNNStates
    return observations, actions, kinds(tuple(states[:2]), tuple(states[2:])), starts.flatten()


OWN = {}
SHARED = {"shared_lstm": True, "enable_critic_lstm": False}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("options", [OWN, SHARED], ids=["own", "shared"])
def test_every_lag_is_that_of_a_plain_loop(options, layers):
    policy = agent(n_lstm_layers=layers, features_extractor_class=Double, **options).policy.double()
    data = rollout(policy)

    def run():
        values, log_prob, entropy = policy.evaluate_actions(*data)
        return values.square().mean() - log_prob.mean() - 0.01 * entropy.mean()

    with retrograde.record(policy) as recording:
        run().backward()
    assert set(recording) == {"lstm_actor"} | (set() if options else {"lstm_critic"})
    for name in recording:
        flow = retrograde.decompose(recording[name])
        assert flow.steps == 10
        agrees(flow, plain_loop(policy.get_submodule(name), run))


@pytest.mark.parametrize("every", [1, 7])
def test_their_own_training_is_the_same_to_the_last_bit(every, unchecked):
    """240 optimiser steps in their own loop, with a monitor around each or around some."""
    ends, seen = [], []
    for watched in (False, True):
        ppo = agent()
        evaluate = ppo.policy.evaluate_actions
        if watched:
            monitor = Monitor(ppo.policy, every=every, log=lambda scalars, _: seen.append(scalars))

            def with_monitor(*data, monitor=monitor, evaluate=evaluate):
                monitor.start()
                return evaluate(*data)

            ppo.policy.evaluate_actions = with_monitor
            ppo.policy.optimizer.register_step_post_hook(lambda *_, monitor=monitor: monitor.stop())
        ppo.learn(24 * 24)
        if watched:
            assert monitor.step == 24 * 5 * 2 - 1 and len(seen) == -(-240 // every)
            assert all(scalars["retrograde/unrecorded"] == 0 for scalars in seen)
            assert max(scalars["retrograde/lstm_actor/reach"] for scalars in seen) > 3
            for name in monitor.recording:
                flow = retrograde.decompose(monitor.recording[name])
                assert flow.residual < 1e-5  # float32
        ends.append([p.detach().clone() for p in ppo.policy.parameters()])
    assert all(map(torch.equal, *ends))


def test_nothing_comes_back_through_an_episodes_beginning():
    """Every step begins an episode: nothing is left at any lag but 0."""
    policy = agent(features_extractor_class=Double).policy.double()
    observations, actions, states, starts = rollout(policy)
    with retrograde.record(policy) as recording:
        values, log_prob, _ = policy.evaluate_actions(
            observations, actions, states, torch.ones_like(starts)
        )
        (values.square().mean() - log_prob.mean()).backward()
    for name in recording:
        flow = retrograde.decompose(recording[name])
        assert flow.residual < EXACT and flow.reach == 0
