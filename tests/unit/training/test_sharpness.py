"""Sharpness-aware minimization: DeepSpeed's engine takes the steps of a plain loop, on one rank and on two."""

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.nn.utils import clip_grad_norm_

from models.classifier import Classifier
from recipes.schema import TrainingSection
from tests.unit.training.small import section_of, small_material
from tests.unit.training.test_ranks import on_ranks
from training.classification import ClassifierMaterial
from training.loop import new_engine, train
from training.sharpness import ascended
from training.windows import steps
from training.zero import learning_rate_factor, parameter_groups, stop_engine

RADIUS = 0.2
FIELDS = {"sam_radius": RADIUS, "epochs": 2}


def test_weights_lie_the_radius_up_the_gradient_and_are_then_what_they_were() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    unused = torch.nn.Parameter(torch.ones(2))
    inputs, labels = torch.randn(8, 4), torch.randint(0, 3, (8,))
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    with ascended([*model.parameters(), unused], radius=RADIUS):
        assert all(parameter.grad is None for parameter in model.parameters())
        moved = torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])
        torch.testing.assert_close(moved, RADIUS * gradient / gradient.norm())
        assert torch.nn.functional.cross_entropy(model(inputs), labels) > loss
    assert all(torch.equal(parameter, value) for parameter, value in zip(model.parameters(), before, strict=True))
    assert torch.equal(unused, torch.ones(2))


def plainly(material: ClassifierMaterial, section: TrainingSection) -> Classifier:
    """The same training without DeepSpeed and without our own perturbation."""
    torch.manual_seed(section.seed * 1000)
    model = material.build(section).train()
    model.device = torch.device("cpu")  # type: ignore[assignment]
    groups = parameter_groups(model, section)
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups)
    in_all = section.epochs * len(list(steps(material.train, section, epoch=0, start=0)))
    factor = learning_rate_factor(in_all, warmup_fraction=section.warmup_fraction)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for epoch in range(section.epochs):
        for window, rows in steps(material.train, section, epoch=epoch, start=0):
            optimizer.zero_grad()
            total, _ = material.loss(model, section, window, rows)
            (total / len(rows)).backward()  # type: ignore[no-untyped-call]
            found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
            norm = torch.sqrt(sum((one**2).sum() for one in found))  # type: ignore[arg-type]
            with torch.no_grad():
                for parameter, one in zip(parameters, found, strict=True):
                    parameter += RADIUS * one / norm
            optimizer.zero_grad()
            total, _ = material.loss(model, section, window, rows)
            (total / len(rows)).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for parameter, one in zip(parameters, found, strict=True):
                    parameter -= RADIUS * one / norm
            clip_grad_norm_(parameters, section.gradient_clipping)
            optimizer.step()
            schedule.step()
    return model


def test_the_engine_takes_the_steps_of_a_plain_loop() -> None:
    section = section_of(**FIELDS)
    with mock.patch("training.loop.inference_dtype", return_value=torch.float32):
        material = small_material(dropout=0.0)
        engine = new_engine(section, material)
        train(engine, section, material=material, on_step=lambda _: None, on_epoch=lambda *_: True)
    expected = plainly(small_material(dropout=0.0), section).state_dict()
    found = engine.module.state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)
    stop_engine(engine)


def train_on_ranks(folder: Path, stage: int, method: str) -> None:
    """Each rank writes its weights' sum, rank 0 the last loss besides."""
    section = section_of(num_workers=dist.get_world_size(), zero_stage=stage, method=method, **FIELDS)
    material = small_material(dropout=0.0)
    with mock.patch("training.loop.inference_dtype", return_value=torch.float32):
        engine = new_engine(section, material)
        last = train(engine, section, material=material, on_step=lambda _: None, on_epoch=lambda *_: True)
    weights = [float(parameter.double().sum()) for parameter in engine.module.parameters()]
    (folder / f"{dist.get_world_size()}-{dist.get_rank()}.json").write_text(json.dumps([last.loss, weights]))
    stop_engine(engine)


def test_two_ranks_learn_what_one_does_and_stay_alike(tmp_path: Path) -> None:
    for num_ranks in (1, 2):
        (tmp_path / str(num_ranks)).mkdir()
        on_ranks(num_ranks, train_on_ranks, [(0, "full")], tmp_path / str(num_ranks))
    (loss, weights), *others = (
        json.loads((tmp_path / str(num) / "0-full" / f"{num}-{rank}.json").read_text())
        for num, rank in ((1, 0), (2, 0), (2, 1))
    )
    assert [other[0] for other in others] == pytest.approx([loss, loss], rel=1e-4)
    assert others[0][1] == others[1][1]
    assert others[0][1] == pytest.approx(weights, rel=1e-2, abs=1e-3)
