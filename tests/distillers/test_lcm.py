"""LCM, PCM and Hyper-SD's segments against closed forms and identities."""

from __future__ import annotations

import pytest
import torch

import stepdistill as sd
from stepdistill.data.source import data_from_prompts
from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rollout import sample
from stepdistill.diffusion.schedules.base import per_sample
from stepdistill.distillers.base import Batch, Distiller, PerTime
from stepdistill.distillers.consistency.config import LCMConfig
from stepdistill.errors import UserError
from stepdistill.testing import BulkStream, GaussianTeacher, MixtureTeacher, MLPDenoiser, fit, tiny_pipeline, train_toy


class ExactJump(Denoiser):
    """The optimum: estimates whose DDIM jump from t to the edge below is the teacher's exact flow map."""

    def __init__(self, teacher: GaussianTeacher, segments: int) -> None:
        super().__init__()
        self.teacher, self.segments, self.prediction = teacher, segments, "x0"
        self.schedule, self.is_trainable = teacher.schedule, True

    def forward_network(self, x_t: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        edge = (torch.ceil(t * self.segments - 1e-4) - 1).clamp(min=0) / self.segments
        landed = self.teacher.flow_map(x_t, t, edge, cond)
        (a, sigma), (a_e, sigma_e) = self.schedule.level(t), self.schedule.level(edge)
        ratio = per_sample(sigma_e / sigma.clamp(min=1e-8), x_t)
        return (landed - ratio * x_t) / (per_sample(a_e, x_t) - ratio * per_sample(a, x_t))


def toy_batch(teacher: Denoiser, latents: torch.Tensor, step: int = 0) -> Batch:
    n = len(latents)
    cond = teacher.encode(["x"]).expand(n)
    stream = BulkStream(0, step, tuple(range(n)))
    return Batch(cond, teacher.uncond(1).expand(n), stream, step, latents.shape[1:], latents, cond)


def tiny_batch(distiller: Distiller, size: int = 2) -> Batch:
    data = data_from_prompts(distiller.teacher, ["a red fox", "two cats"])
    batch = data.batch(seed=0, step=0, indices=range(size), size=size)
    batch.latents = torch.randn(size, *batch.shape, generator=torch.Generator().manual_seed(1))
    batch.latents_cond = batch.cond
    return batch


def mean_gap(teacher: GaussianTeacher, solver_steps: int, segments: int) -> float:
    config = LCMConfig(guidance_scale=1.0, solver_steps=solver_steps, num_steps=segments, segments=(segments,))
    distiller = sd.LCM(teacher, config, student=ExactJump(teacher, segments))
    gap = distiller.student_step(toy_batch(teacher, teacher.sample(4096))).logs["gap"]
    assert isinstance(gap, PerTime)
    return gap.values.mean().item()


@pytest.mark.parametrize("segments", [1, 4])
def test_the_exact_map_is_the_optimum_up_to_the_solvers_error(segments: int) -> None:
    """Spec 4.5: what is left of the gap is the DDIM step's local error, O(h^2): a fourth at twice the points."""
    teacher = GaussianTeacher(torch.tensor([1.0, -0.5]), torch.tensor([0.5, 1.5]))
    coarse, fine = mean_gap(teacher, 40, segments), mean_gap(teacher, 80, segments)
    assert coarse < 2e-3
    assert 3.2 < coarse / fine < 4.8


def test_chained_jumps_of_four_segments_are_the_whole_flow_map() -> None:
    teacher = GaussianTeacher(torch.tensor([1.0, -0.5]), torch.tensor([0.5, 1.5]))
    distiller = sd.LCM(teacher, LCMConfig(segments=(4,), num_steps=4), student=ExactJump(teacher, 4))
    sampler = distiller.sampler()
    assert sampler.kind == "ode"
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    cond, rng = teacher.encode(["x"]).expand(64), BulkStream(0, 0, tuple(range(64)))
    exact = teacher.flow_map(noise, torch.ones(64), torch.zeros(64), cond)
    torch.testing.assert_close(sample(distiller.student, sampler, noise, cond, rng), exact)


@pytest.mark.parametrize(("segments", "length"), [((1,), 40), ((4,), 10)])
def test_intervals_lie_between_neighbours_above_their_edge(segments: tuple[int, ...], length: int) -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    distiller = sd.LCM(teacher, LCMConfig(segments=segments), roles=sd.Roles(rank=2))
    t, s, edge = distiller.interval(torch.arange(40) / 40, 0)
    indices = [999 - 25 * j for j in range(40)]
    assert (t * 999).round().long().tolist() == indices
    assert (s * 999).round().long().tolist() == [*indices[1:], 0]
    edges = [*indices[length::length], 0]
    assert (edge * 999).round().long().tolist() == [e for e in edges for _ in range(length)]
    sampler = distiller.sampler()
    assert [round(x * 999) for x in sampler.times] == [999, 749, 499, 249]
    assert sampler.kind == ("sde" if segments == (1,) else "ode")
    assert distiller.is_flow_map is (segments == (1,))


def test_a_jump_that_has_arrived_is_the_state_itself() -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    distiller = sd.LCM(teacher, LCMConfig(), roles=sd.Roles(rank=2))
    batch = tiny_batch(distiller)
    x_t, t = batch.noise("x"), torch.tensor([0.5, 0.0])
    assert torch.equal(distiller.jump(distiller.student, x_t, t, t, batch.cond), x_t)


def test_stages_of_hyper_sd_follow_each_other() -> None:
    teacher = GaussianTeacher(1.0, 0.5)
    config = LCMConfig(segments=(8, 4, 2, 1), stage_steps=10, num_steps=1)
    distiller = sd.LCM(teacher, config)
    assert [distiller.num_segments(step) for step in (0, 9, 10, 29, 30, 500)] == [8, 8, 4, 2, 1, 1]
    u = torch.tensor([0.0])
    edges = [distiller.interval(u, step)[2].item() for step in (0, 10, 20, 30)]
    assert edges == pytest.approx([0.875, 0.75, 0.5, 0.0])
    assert distiller.sampler().times == (1.0,)


@pytest.mark.parametrize(
    ("segments", "name"), [((1,), "LCM"), ((4,), "PCM"), ((8, 4), "Hyper-SD"), ((4, 2, 1), "Hyper-SD")]
)
def test_what_the_segments_make_of_it_is_credited(segments: tuple[int, ...], name: str) -> None:
    distiller = sd.LCM(GaussianTeacher(1.0, 0.5), LCMConfig(segments=segments, num_steps=segments[-1]))
    assert distiller.credit[0] == name


def test_scale_one_is_no_guidance() -> None:
    teacher = GaussianTeacher(1.0, 0.5, uncond_mean=-1.0)
    batch = toy_batch(teacher, teacher.sample(64))
    losses = [
        sd.LCM(teacher, LCMConfig(**options)).student_step(batch).total.item()
        for options in ({"guidance_scale": 1.0}, {"guidance_range": (1.0, 1.0)}, {"guidance_scale": 3.0})
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert abs(losses[0] - losses[2]) > 1e-2


def test_the_average_is_the_target_and_gets_no_gradient() -> None:
    for mode in ("shared", "full"):
        teacher = sd.load_teacher(tiny_pipeline("sd"))
        config = LCMConfig(target="ema", target_decay=0.75)
        distiller = sd.LCM(teacher, config, roles=sd.Roles(mode=mode, rank=2))
        assert distiller.target is not None
        before = [p.clone() for p in distiller.target.trainable_parameters()]
        distiller.student_step(tiny_batch(distiller)).backward()
        assert all(p.grad is None for p in distiller.target.trainable_parameters())
        assert all(p.grad is None for p in teacher.parameters() if not p.requires_grad)
        with torch.no_grad():
            for p in distiller.student.trainable_parameters():
                p += 1.0
        distiller.after_student_update(0)
        for old, new in zip(before, distiller.target.trainable_parameters(), strict=True):
            torch.testing.assert_close(new, old + 0.25)


def test_an_embedded_scale_is_zero_at_first_then_learns_and_reaches_the_stock_pipeline() -> None:
    """LCM's w-embedding: the trainer's own sample at a scale is that of the stock pipeline called with it."""
    for family in ("sd", "sdxl"):
        teacher = sd.load_teacher(tiny_pipeline(family))
        config = LCMConfig(guidance_scale=5.0, guidance_range=(2.0, 8.0), embed_guidance=True, num_steps=1)
        distiller = sd.LCM(teacher, config, roles=sd.Roles(mode="full"))
        student, batch = distiller.student, tiny_batch(distiller)
        x_t, t = batch.noise("x"), torch.ones(2)
        assert torch.equal(student(x_t, t, batch.cond).eps, teacher(x_t, t, batch.cond).eps)
        distiller.student_step(batch).backward()
        projection = student.network.time_embedding.cond_proj
        assert projection.weight.grad.abs().max() > 0
        torch.nn.init.normal_(projection.weight)
        told = batch.cond.with_guidance_scale(torch.tensor([5.0, 5.0]))
        assert torch.equal(student(x_t, t, batch.cond).eps, student(x_t, t, told).eps)
        prompts = ["a red fox", "two cats"]
        for scale in (5.0, 3.0):
            told = student.encode(prompts).with_guidance_scale(torch.full((2,), scale))
            ours = student(x_t, t, told).x0
            call = {**student.call_arguments(distiller.sampler()), "guidance_scale": scale}
            pipe = distiller.pipeline()
            theirs = pipe(prompts, latents=x_t.clone(), output_type="latent", **call).images
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(ours.detach().abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("segments", [1, 2])
def test_a_toy_learns_the_quantile_map(segments: int) -> None:
    """Spec 4.2: the flow map of a 1-D mixture is the monotone map of quantiles; the teacher's one step is 1.27 off."""
    teacher = MixtureTeacher([0.5, 0.5], [[-1.5], [1.0]], [0.3, 0.5], sd.TrigSchedule())
    data, cond = teacher.sample(20_000), teacher.encode(["x"])
    student = MLPDenoiser((1,), teacher.schedule, prompts=teacher.prompts)
    fit(student, teacher, data, cond.expand(len(data)), num_steps=500)
    config = LCMConfig(
        guidance_scale=1.0, solver_steps=32, num_steps=segments, segments=(segments,), huber_c=0.1, target="ema"
    )
    distiller = sd.LCM(teacher, config, student=student)
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(5))
    exact = teacher.flow_map(noise, torch.ones(4000), torch.zeros(4000))
    told, rng = cond.expand(4000), BulkStream(1, 0, tuple(range(4000)))

    def rmse() -> float:
        made = sample(student, distiller.sampler(), noise, told, rng)
        return (made - exact).square().mean().sqrt().item()

    before = rmse()
    train_toy(distiller, cond, data, num_steps=600, learning_rate=3e-3)
    assert rmse() < 0.16
    assert before > 3 * rmse()


def test_wrong_settings_say_the_fix() -> None:
    teacher = GaussianTeacher(1.0, 0.5)
    for options, words in [
        ({"solver_steps": 50, "num_steps": 4}, "multiple of num_steps=4"),
        ({"segments": (8,), "num_steps": 4}, r"num_steps=8"),
        ({"embed_guidance": True}, "embed_guidance=false"),
    ]:
        with pytest.raises(UserError, match=words):
            sd.LCM(teacher, LCMConfig(**options))
    with pytest.raises(ValueError, match="lowest, highest"):
        LCMConfig(guidance_range=(5.0, 2.0))
    shared = sd.load_teacher(tiny_pipeline("sd"))
    with pytest.raises(UserError, match=r"roles\.mode=full"):
        sd.LCM(shared, LCMConfig(embed_guidance=True), roles=sd.Roles(rank=2))
    batch = toy_batch(teacher, teacher.sample(2))
    batch.latents = None
    with pytest.raises(UserError, match=r"data\.images"):
        sd.LCM(teacher, LCMConfig()).student_step(batch)


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_the_student_is_run_at_points_that_it_is_trained_at(family: str, shift: float) -> None:
    teacher = sd.load_teacher(tiny_pipeline(family))
    config = LCMConfig(num_steps=4, solver_steps=40, grid_shift=shift)
    distiller = sd.LCM(teacher, config, roles=sd.Roles(rank=2))
    times = distiller.sampler().times
    assert set(times) <= set(distiller.grid)
    assert (times[1] > teacher.few_step_times(4, "sde")[1]) == (shift > 1)


def test_golden_first_losses() -> None:
    """A refactor must not move a number unseen."""
    found = {}
    for segments in (1, 4):
        teacher = sd.load_teacher(tiny_pipeline("sd"))
        config = LCMConfig(segments=(segments,), guidance_range=(2.0, 6.0))
        distiller = sd.LCM(teacher, config, roles=sd.Roles(rank=4))
        found[segments] = distiller.student_step(tiny_batch(distiller)).total.item()
    assert found == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = {1: 0.0715850, 4: 0.0347963}
