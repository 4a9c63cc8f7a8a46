"""What `eval` and `train` read beside checkpoints, with mutated inputs: see test_loaders."""

import copy
import io
import json
import random
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from fuzzing import Attempt, json_text, mutate_bytes, mutate_json, mutate_text, reader

from m2xfp.golden.formats.mixed import Split
from m2xfp.models.lm import LanguageModel, ModelConfig
from m2xfp.models.mixed import Plan, Rule, load_plan
from m2xfp.models.recipes.recipe import Recipe, parse_steps, read_recipe
from m2xfp.models.train import TrainConfig, optimizers_of
from m2xfp.models.train_state import Spent, read_state, sealed, write_state

RULES = ("micromix:strength=2.0,tile=64", "mxquant:share=0.1,activations=mxfp8-e4m3", "mxquant")
STEPS = (
    "rotate:mode=online:seed=3,awq:grid=5",
    "smooth:strength=0.3,gptq:shrink=1/0.9:order=false",
)


@reader(300)
def plan(folder: Path) -> Attempt:
    """`--splits`."""
    rule, split = Rule.parse("mxquant:tile=32"), Split(torch.arange(64).flip(0), (32, 32, 0), 32)
    right = Plan(rule, {"a.b": split}, {"text": "t", "windows": 2})
    given, target = json.loads(right.as_json()), folder / "p.json"

    def attempt(rng: random.Random) -> None:
        target.write_bytes(json_text(given, rng))
        found = load_plan(target)
        for one in found.splits.values():
            assert sorted(one.order.tolist()) == list(range(sum(one.sizes)))
            assert all(size % found.rule.tile == 0 for size in one.sizes)
        said, taken = json.loads(target.read_bytes()), json.loads(found.as_json())
        assert said["layers"] == taken["layers"]
        assert Rule.parse(taken["rule"]) == found.rule

    return attempt


@reader(300)
def recipe(folder: Path) -> Attempt:
    """`--recipe`."""
    given = [json.loads(Recipe(parse_steps(text), weights="mxfp4").as_json()) for text in STEPS]
    target = folder / "r.json"

    def attempt(rng: random.Random) -> None:
        target.write_bytes(json_text(rng.choice(given), rng))
        found = read_recipe(target)
        target.write_text(found.as_json())
        assert read_recipe(target) == found

    return attempt


@reader(500)
def steps_and_rules(_folder: Path) -> Attempt:
    """`--steps` and `--mixed`."""

    def attempt(rng: random.Random) -> None:
        if rng.random() < 0.5:
            rule = Rule.parse(mutate_text(rng.choice(RULES), rng, 2))
            assert Rule.parse(str(rule)) == rule
        else:
            found = Recipe(parse_steps(mutate_text(rng.choice(STEPS), rng, 2)))
            assert parse_steps(found.label) == found.steps

    return attempt


def _mutated(content: dict[str, Any], rng: random.Random) -> object:
    """Return what a state holds with a member replaced, dropped, renamed or of another shape."""
    content = copy.deepcopy(content)
    if rng.random() < 0.1:
        return rng.choice(([1, 2], torch.zeros(3), None, {"identity": content["identity"]}))
    if rng.random() < 0.4:
        name = rng.choice(("identity", "spent"))
        content[name] = mutate_json(content[name], rng)
        return content
    places = [content, content["model"], *content["optimizers"]]
    places += [values for part in content["optimizers"] for values in part.values()]
    place = rng.choice(places)
    key = rng.choice(list(place))
    kind = rng.randrange(7)
    if kind == 0:
        del place[key]
    elif kind == 1:
        place[rng.choice((0, 99, "x", ("a",)))] = place.pop(key)
    elif kind == 2 or not isinstance(place[key], torch.Tensor):
        place[key] = rng.choice((None, 1, "x", [], {}, [{}], torch.zeros(2), torch.tensor(1)))
    else:
        value = place[key]
        other = (value.double(), value.bool(), value[None], value.reshape(-1), value.to_sparse())
        strange = (value.to("meta"), torch.nn.Parameter(value), torch.zeros(()).expand(value.shape))
        place[key] = rng.choice((*other, *strange, value * float("nan"), -value))
    return content


@reader(200)
def training_state(folder: Path) -> Attempt:
    """`train --resume`: a file that was damaged, and one that was made so."""
    shape = ModelConfig(width=8, layers=1, heads=1, hidden=8, context=4)
    torch.manual_seed(0)

    def fresh() -> tuple[LanguageModel, list[torch.optim.Optimizer]]:
        model = LanguageModel(shape)
        return model, optimizers_of(model, TrainConfig(steps=4))

    def step(model: LanguageModel, optimizers: list[torch.optim.Optimizer]) -> list[torch.Tensor]:
        model(torch.arange(4)[None]).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach().clone() for parameter in model.parameters()]

    first, second = fresh(), fresh()
    step(*first)
    identity = {"shape": {"width": 8}, "batch": 2, "dropout": 0.1, "seed": 0}
    target, spent = folder / "m.state", Spent(3, 0.25, 1.5)
    write_state(target, identity, *first, spent)
    data = target.read_bytes()
    assert read_state(target, identity, *second) == spent
    assert all(map(torch.equal, step(*first), step(*second)))  # it goes on as if nothing had been
    body = data[:-32]
    content = torch.load(io.BytesIO(body), weights_only=True)

    def attempt(rng: random.Random) -> None:
        kind = rng.randrange(3)
        if kind == 0:  # something happened to the file
            target.write_bytes(mutate_bytes(data, rng))
        elif kind == 1:  # someone else has written it
            target.write_bytes(sealed(_mutated(content, rng)))
        else:
            changed = mutate_bytes(body, rng)
            target.write_bytes(changed + sha256(changed).digest())
        own = fresh()
        found = read_state(target, identity, *own)
        assert kind != 0 or target.read_bytes() == data
        assert 0 <= found.progress <= 1
        step(*own)

    return attempt
