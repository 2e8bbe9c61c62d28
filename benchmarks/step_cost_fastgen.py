"""The peer's side of `step_cost.py`: FastGen's DMD2 (https://github.com/NVlabs/FastGen) through its public interface.

FastGen has no SD3 network, so the class that its interface asks for is written here around diffusers' transformer. Everything else,
the method, the discriminator, the gradient clipping, the optimisers and schedulers, is imported from the checkout.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from fastgen.callbacks.grad_clip import GradClipCallback
from fastgen.configs.opt import BaseOptimizerConfig, BaseSchedulerConfig
from fastgen.methods.distribution_matching.dmd2 import DMD2Model
from fastgen.networks.discriminators import Discriminator_ImageDiT
from fastgen.networks.network import FastGenNetwork
from fastgen.utils import LazyCall
from fastgen.utils.basic_utils import detach
from omegaconf import OmegaConf
from step_cost_network import BATCH, CONFIG, CRITIC_TURNS, GUIDANCE, HEAD_BLOCK, SHAPE, TOKENS
from torch import Tensor


class SD3(FastGenNetwork):
    """Diffusers' SD3 transformer with the peer's conventions: features as maps, an early return, any prediction type."""

    def __init__(self) -> None:
        super().__init__(net_pred_type="flow", schedule_type="rf")
        self.transformer = SD3Transformer2DModel(**CONFIG)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Any = None,
        r: Tensor | None = None,
        return_features_early: bool = False,
        feature_indices: set[int] | None = None,
        return_logvar: bool = False,
        fwd_pred_type: str | None = None,
        **fwd_kwargs: Any,
    ) -> Any:
        net, (tokens, pooled) = self.transformer, condition
        side = x_t.shape[-1] // CONFIG["patch_size"]
        image = net.pos_embed(x_t).contiguous()
        time = net.time_text_embed(self.noise_scheduler.rescale_t(t), pooled)
        text = net.context_embedder(tokens)
        wanted, maps = feature_indices or set(), []
        for number, block in enumerate(net.transformer_blocks):
            text, image = block(hidden_states=image, encoder_hidden_states=text, temb=time)
            if number in wanted:
                maps.append(image.transpose(1, 2).reshape(len(image), -1, side, side))
            if return_features_early and len(maps) == len(wanted):
                return maps
        patches = net.proj_out(net.norm_out(image, time)).unflatten(2, (2, 2, -1)).unflatten(1, (side, side))
        output = patches.permute(0, 5, 1, 3, 2, 4).reshape(x_t.shape)
        target = fwd_pred_type or self.net_pred_type
        output = self.noise_scheduler.convert_model_output(
            x_t, output, t, src_pred_type=self.net_pred_type, target_pred_type=target
        )
        return [output, maps] if wanted else output


def configuration(options: argparse.Namespace) -> SimpleNamespace:
    """The fields that its DMD2 reads: its defaults, and Flux's settings of GAN and times."""
    optimizer = {**BaseOptimizerConfig, "lr": 1e-5}
    scheduler = {**BaseSchedulerConfig, "warm_up_steps": [0]}
    players = {
        f"{player}_{part}": dict(config)
        for player in ("net", "fake_score", "discriminator")
        for part, config in (("optimizer", optimizer), ("scheduler", scheduler))
    }
    times = {"time_dist_type": "uniform", "min_t": 0.001, "max_t": 0.999, "t_list": None}
    head = LazyCall(Discriminator_ImageDiT)(
        feature_indices={HEAD_BLOCK}, num_blocks=CONFIG["num_layers"], inner_dim=256
    )
    return SimpleNamespace(
        device="cpu", precision="float32", precision_amp="bfloat16" if options.dtype == "bf16" else None,
        precision_amp_infer=None, precision_amp_enc=None, precision_fsdp=None, input_shape=list(SHAPE), use_ema=False,
        fsdp_meta_init=False, add_teacher_to_fsdp_dict=True, enable_preprocessors=False, grad_scaler_enabled=False,
        grad_scaler_init_scale=65536.0, grad_scaler_growth_interval=2000, net=LazyCall(SD3)(), teacher=None,
        pretrained_model_path="", pretrained_student_net_path="", load_student_weights=False, guidance_scale=GUIDANCE,
        skip_layers=None, student_sample_steps=options.num_steps, student_sample_type="ode", student_update_freq=CRITIC_TURNS + 1,
        gan_loss_weight_gen=0.03 if options.gan else 0.0, gan_use_same_t_noise=False, gan_r1_reg_weight=0.0,
        fake_score_pred_type=None, discriminator=head, sample_t_cfg=OmegaConf.create(times), **players,
    )  # fmt: skip


def build(options: argparse.Namespace) -> Callable[[], None]:
    """One cycle of what its trainer does in each iteration."""
    model = DMD2Model(configuration(options))
    model.on_train_begin()
    model.init_optimizers()
    clip = GradClipCallback(grad_norm=10.0, model_key="net")
    data = {
        "real": torch.randn(BATCH, *SHAPE),
        "condition": (torch.randn(BATCH, TOKENS, 256), torch.randn(BATCH, 256)),
        "neg_condition": (torch.zeros(BATCH, TOKENS, 256), torch.zeros(BATCH, 256)),
    }

    def iterate(iteration: int) -> None:
        with model.autocast():
            losses, outputs = model.single_train_step(data, iteration)
        model.grad_scaler.scale(losses["total_loss"]).backward()
        clip.on_optimizer_step_begin(model, iteration=iteration)
        model.optimizers_schedulers_step(iteration)
        model.optimizers_zero_grad(iteration)
        detach(losses), detach(outputs)

    def cycle() -> None:
        for iteration in range(CRITIC_TURNS + 1):
            iterate(iteration)

    return cycle
