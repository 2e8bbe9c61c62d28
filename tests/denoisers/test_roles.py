"""One network, three roles: what must be bitwise, what must not move, and what is saved."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stepdistill.denoisers import Denoiser, Roles, load_teacher
from stepdistill.denoisers.roles import switch_adapter
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance
from stepdistill.diffusion.schedules.families import FlowSchedule
from stepdistill.errors import UserError
from stepdistill.testing.tiny import tiny_pipeline

SHARED = Roles(rank=4)


def flags(module):
    return {name: p.requires_grad for name, p in module.named_parameters()}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_roles_and_the_teacher_are_bitwise_the_original(teacher, state, dtype, trained):
    x_t, t, cond = state
    teacher.network.to(dtype)
    untouched = load_teacher(copy.deepcopy(teacher.pipe))
    before = untouched(x_t, t, cond)
    student = teacher.role("student", SHARED)
    fake_score = teacher.role("fake_score", SHARED)
    for role in (teacher, student, fake_score):
        assert torch.equal(role(x_t, t, cond).eps, before.eps)
    assert {p.dtype for p in student.trainable_parameters()} == {torch.float32}
    trained(student)
    assert not torch.equal(student(x_t, t, cond).eps, before.eps)
    assert torch.equal(fake_score(x_t, t, cond).eps, before.eps)
    assert torch.equal(teacher(x_t, t, cond).eps, before.eps)
    guidance = Guidance(2.0, teacher.uncond(1))
    assert torch.equal(teacher(x_t, t, cond, guidance).eps, untouched(x_t, t, cond, guidance).eps)
    assert torch.equal(teacher.features(x_t, t, cond)[0], untouched.features(x_t, t, cond)[0])


def test_switching_leaves_requires_grad_alone(teacher):
    student, fake_score = teacher.role("student", SHARED), teacher.role("fake_score", SHARED)
    before = flags(teacher.network)
    for role in (teacher, student, fake_score, student, teacher):
        role.activate()
        assert flags(teacher.network) == before
    trainable = {id(p) for p in [*student.trainable_parameters(), *fake_score.trainable_parameters()]}
    assert all(p.requires_grad == (id(p) in trainable) for p in teacher.network.parameters())
    assert not {id(p) for p in student.trainable_parameters()} & {id(p) for p in fake_score.trainable_parameters()}


def test_roles_share_one_network(teacher):
    student, fake_score = teacher.role("student", SHARED), teacher.role("fake_score", SHARED)
    assert student.network is fake_score.network is teacher.network
    assert student.pipe is teacher.pipe
    full = load_teacher(tiny_pipeline("sd")).role("student", Roles(mode="full"))
    assert full.network is not full.pipe.unet
    assert len(full.trainable_parameters()) == len(list(full.network.parameters()))
    assert all(p.requires_grad for p in full.parameters())
    assert not any(p.requires_grad for p in full.pipe.unet.parameters())


def test_each_role_gets_its_own_gradients(teacher, state):
    student, fake_score = teacher.role("student", SHARED), teacher.role("fake_score", SHARED)
    student(*state).x0.square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.trainable_parameters())
    assert all(p.grad is None for p in fake_score.trainable_parameters())
    own = {id(p) for p in student.trainable_parameters()}
    assert all(p.grad is None for p in teacher.network.parameters() if id(p) not in own)


def test_two_stage_backward_is_exact_under_checkpointing(teacher, state, trained):
    """Student, then critic, then the student's graph: with `activate` the recomputation is the right one."""
    x_t, t, cond = state
    student, fake_score = (trained(teacher.role("student", SHARED)), trained(teacher.role("fake_score", SHARED)))

    def gradients(two_stage):
        x0 = student(x_t, t, cond).x0
        leaf = x0.detach().requires_grad_(True) if two_stage else x0
        fake_score(leaf, t, cond).x0.square().mean().backward()
        if two_stage:
            student.activate()
            x0.backward(leaf.grad)
        taken = [p.grad.clone() for p in student.trainable_parameters() if p.grad is not None]
        teacher.network.zero_grad()
        return taken

    joint = gradients(two_stage=False)
    teacher.enable_gradient_checkpointing()
    for one, other in zip(joint, gradients(two_stage=True), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_adapters_start_from_the_seed(teacher):
    def first_factors(seed):
        fresh = load_teacher(copy.deepcopy(teacher.pipe))
        torch.manual_seed(torch.initial_seed() + 1)
        state = torch.get_rng_state()
        student = fresh.role("student", Roles(rank=4, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
        return student.role_state_dict()

    one, again, other = first_factors(0), first_factors(0), first_factors(1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mode", ["shared", "full"])
@torch.no_grad()
def test_state_round_trip(teacher, state, trained, tmp_path, mode):
    roles = Roles(mode=mode, rank=4, alpha=2.0)
    fresh = load_teacher(copy.deepcopy(teacher.pipe)).role("student", roles)
    student = trained(teacher.role("student", roles))
    tensors = student.role_state_dict()
    save_file(tensors, tmp_path / "student.safetensors")
    assert not torch.equal(fresh(*state).eps, student(*state).eps)
    fresh.load_role_state_dict(load_file(tmp_path / "student.safetensors"))
    assert torch.equal(fresh(*state).eps, student(*state).eps)
    if mode == "shared":
        assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors)
        assert set(tensors) == set(teacher.role("fake_score", roles).role_state_dict())
    assert teacher.role_state_dict() == {}
    name = next(iter(tensors))
    with pytest.raises(ValueError, match="lacks 1 tensors"):
        fresh.load_role_state_dict({k: v for k, v in tensors.items() if k != name})
    with pytest.raises(ValueError, match="1 unknown tensors"):
        fresh.load_role_state_dict(tensors | {"other": torch.zeros(1)})
    with pytest.raises(ValueError, match="expected"):
        fresh.load_role_state_dict(tensors | {name: torch.zeros(1)})


@torch.no_grad()
def test_a_full_copy_is_the_teacher_in_float32(teacher, state):
    student = teacher.role("student", Roles(mode="full"))
    assert torch.equal(student(*state).eps, teacher(*state).eps)
    half = load_teacher(teacher.pipe, dtype=torch.bfloat16)
    assert {p.dtype for p in half.role("student", Roles(mode="full")).trainable_parameters()} == {torch.float32}
    assert half.network.dtype == torch.bfloat16


@torch.no_grad()
def test_a_full_copy_leaves_adapters_of_others_behind(teacher, state, trained):
    trained(teacher.role("student", SHARED))
    copied = teacher.role("fake_score", Roles(mode="full"))
    assert torch.equal(copied(*state).eps, teacher(*state).eps)
    assert not any("lora" in name for name in copied.role_state_dict())


def test_a_taken_name_gets_a_number(teacher):
    first, second = teacher.role("student", SHARED), teacher.role("student", SHARED)
    assert (first.adapter, second.adapter) == ("student", "student_2")


def test_targets_by_name_and_unknown_targets(teacher):
    student = teacher.role("student", Roles(rank=2, target_modules=["to_q", "nowhere"]))
    assert all(".to_q." in name for name in student.role_state_dict())
    with pytest.raises(UserError, match=r"roles\.target_modules"):
        teacher.role("fake_score", Roles(target_modules=["nowhere"]))


def test_default_targets_cover_attention_and_feed_forward(family, teacher):
    layers = {name.rsplit(".lora_", 1)[0] for name in teacher.role("student", SHARED).role_state_dict()}
    assert family.adapted <= {layer.rsplit(".", 1)[-1] for layer in layers}
    assert any("ff.net" in layer for layer in layers)


class OwnDenoiser(Denoiser):
    """The least a user has to write."""

    prediction = "flow"
    schedule = FlowSchedule()

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 2))

    def forward_network(self, x_t, t, cond):
        return self.network(x_t) + t[:, None] * cond["bias"]


@torch.no_grad()
def test_own_network_in_both_modes():
    x_t, t, cond = torch.randn(3, 2), torch.rand(3), Conditioning({"bias": torch.ones(1, 1)})
    teacher = OwnDenoiser()
    copied = teacher.role("student", SHARED)
    assert copied.network is not teacher.network, "without lora_targets a role is a copy"
    teacher.lora_targets = ("0", "2")
    shared = teacher.role("student", SHARED)
    assert shared.network is teacher.network
    for role in (copied, shared):
        assert torch.equal(role(x_t, t, cond).x0, teacher(x_t, t, cond).x0)
    assert [f.shape for f in teacher.features(x_t, t, cond, ["1"])] == [(3, 8)]


def test_switching_a_plain_network_is_nothing():
    switch_adapter(nn.Linear(1, 1), "student")
