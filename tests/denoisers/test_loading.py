"""Loading a teacher, and one clear line for everything that can be wrong with the path."""

from __future__ import annotations

import json

import pytest
import torch

from stepdistill.denoisers import FAMILIES, load_teacher
from stepdistill.denoisers.loading import family_of
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.rollout import sample
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.errors import UserError
from stepdistill.testing.tiny import tiny_pipeline


@pytest.fixture
def folder(tmp_path):
    tiny_pipeline("sd").save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def test_a_folder_and_the_pipeline_object_give_the_same(folder):
    loaded, given = load_teacher(folder), load_teacher(tiny_pipeline("sd"))
    x_t, t = torch.randn(1, *given.latent_shape()), torch.tensor([0.5])
    assert torch.equal(loaded(x_t, t, loaded.encode(["a cat"])).x0, given(x_t, t, given.encode(["a cat"])).x0)
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.pipe.text_encoder.parameters())


def test_dtype_and_device(folder):
    teacher = load_teacher(str(folder), dtype=torch.bfloat16, device="cpu")
    assert teacher.dtype == teacher.pipe.text_encoder.dtype == torch.bfloat16


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_listed_family_imports(family):
    assert family_of(family).__name__.endswith("Denoiser")


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "assets/nowhere"])
def test_missing_folder(name):
    with pytest.raises(UserError, match="there is no folder") as error:
        load_teacher(name)
    assert name in one_line(error)


def test_folder_without_an_index(folder):
    with pytest.raises(UserError, match=r"model_index\.json") as error:
        load_teacher(folder / "unet")
    one_line(error)


def test_the_folder_of_a_lora(tmp_path):
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    with pytest.raises(UserError, match=r"holds a LoRA.*export\.formats=\[pipeline\]") as error:
        load_teacher(tmp_path)
    one_line(error)


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(UserError, match="is a file"):
        load_teacher(folder / "model_index.json")


def test_unknown_family(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "KandinskyPipeline"}))
    with pytest.raises(UserError, match="KandinskyPipeline is not supported") as error:
        load_teacher(folder)
    assert "StableDiffusionPipeline" in one_line(error)


def test_broken_index(folder):
    (folder / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="readable") as error:
        load_teacher(folder)
    one_line(error)


@pytest.mark.parametrize("damage", ["truncated", "missing", "config"])
def test_unreadable_weights(folder, damage):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(UserError, match="weights") as error:
        load_teacher(folder)
    one_line(error)


def test_an_unfused_lora_is_refused():
    pipe = tiny_pipeline("sd")
    from peft import LoraConfig

    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="style")
    with pytest.raises(UserError, match="fuse_lora"):
        load_teacher(pipe)


def test_loading_the_same_pipeline_twice_is_fine():
    pipe = tiny_pipeline("sd")
    from stepdistill.denoisers import Roles

    student = load_teacher(pipe).role("student", Roles(rank=2))
    assert load_teacher(pipe).trainable_parameters() == []
    assert all(p.requires_grad for p in student.trainable_parameters())


@torch.no_grad()
def test_prompt_arguments_reach_the_embedding_and_the_call():
    plain = load_teacher(tiny_pipeline("sd3"))
    short = load_teacher(tiny_pipeline("sd3"), prompt_arguments={"max_sequence_length": 1})
    lengths = [teacher.encode(["a cat"])["tokens"].shape[1] for teacher in (plain, short)]
    assert lengths == [16 + 256, 16 + 1]
    sampler = StudentSampler(short.few_step_times(2, "ode"), "ode")
    arguments = short.call_arguments(sampler)
    assert arguments["max_sequence_length"] == 1
    assert "max_sequence_length" not in plain.call_arguments(sampler)
    noise = torch.randn(1, *short.latent_shape(), generator=torch.Generator().manual_seed(0))
    ours = sample(short, sampler, noise, short.encode(["a cat"]), RandomStream(0, 0, (0,)))
    theirs = short.pipeline(sampler)(["a cat"], latents=noise, output_type="latent", **arguments).images
    torch.testing.assert_close(ours, theirs, atol=1e-5 * float(ours.abs().max()), rtol=0)


def test_an_unknown_prompt_argument_is_named():
    with pytest.raises(UserError, match=r"no 'max_sequence_length'; use one of .*clip_skip") as error:
        load_teacher(tiny_pipeline("sd"), prompt_arguments={"max_sequence_length": 1})
    one_line(error)
