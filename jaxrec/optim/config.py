"""The optimiser of an experiment, built from Optax."""

import dataclasses
from typing import Any, Literal

import jax
import optax

from jaxrec.optim.clipping import clip_by_global_norm
from jaxrec.optim.rowwise import scale_by_rowwise_rss
from jaxrec.optim.touched import table_of
from jaxrec.optim.transfer import Layers, add_l2_to_start, scale_by_layer, unfreeze_layers
from jaxrec.typing import Params, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An Optax optimiser with schedule, clipping and weight decay.

    Attributes:
      name: the Optax optimiser; "rowwise_adagrad" keeps one accumulator for a row of a table.
      learning_rate: peak learning rate.
      warmup_steps: steps of linear warm-up, in equal rises of which the first step has one.
      decay: "constant" after warm-up, or "cosine" down to `final_fraction` at the last step.
      final_fraction: what is left of the learning rate at the end of a cosine, in [0, 1].
      b1, b2, eps: moments and epsilon of adam and lion (lion has no epsilon).
      momentum: of sgd.
      initial_accumulator: of both Adagrads.
      weight_decay: decoupled decay of matrices; vectors (biases, norms) never decay.
      decay_tables: whether embedding tables decay as well. In a touched-rows step a row decays
        only when a batch touches it.
      clip_norm: largest global norm of a gradient; 0 does not clip.
      l2_to_start: weight of the pull towards the parameters that training starts with (L2-SP,
        arXiv 1802.01483), added to gradients once they are clipped; 0 has none. In a touched-rows
        step a row is pulled only when a batch touches it.
      layer_decay: factor of the learning rate from each layer to the one below, above 0; 1 has one
        rate for all.
      unfreeze_every: steps after which the next layer begins to move, from the top one down; 0
        moves all from the start.
    """

    name: Literal["adam", "adagrad", "rowwise_adagrad", "sgd", "lion"] = "adam"
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0
    initial_accumulator: float = 0.1
    weight_decay: float = 0.0
    decay_tables: bool = False
    clip_norm: float = 0.0
    l2_to_start: float = 0.0
    layer_decay: float = 1.0
    unfreeze_every: int = 0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0; got {self.learning_rate}.")
        if min(self.warmup_steps, self.weight_decay, self.clip_norm) < 0:
            raise ValueError("warmup_steps, weight_decay and clip_norm must not be negative.")
        if min(self.l2_to_start, self.unfreeze_every) < 0 or self.layer_decay <= 0:
            raise ValueError(
                "l2_to_start and unfreeze_every must not be negative, and layer_decay must be above"
                f" 0; got {self.l2_to_start}, {self.unfreeze_every} and {self.layer_decay}."
            )
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction must be in [0, 1]; got {self.final_fraction}.")

    def schedule(self, steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step, for a run of so many steps."""
        if self.warmup_steps >= steps > 0:
            raise UserError(
                f"config.optimizer.warmup_steps={self.warmup_steps} must be less than the "
                f"run's {steps} steps."
            )
        if self.decay == "cosine":
            rest: optax.Schedule = optax.cosine_decay_schedule(
                self.learning_rate, max(1, steps - self.warmup_steps), self.final_fraction
            )
        else:
            rest = optax.constant_schedule(self.learning_rate)
        if not self.warmup_steps:
            return rest
        # A first step at rate 0 would move nothing.
        first = self.learning_rate / (self.warmup_steps + 1)
        warmup = optax.linear_schedule(first, self.learning_rate, self.warmup_steps)
        return optax.join_schedules([warmup, rest], [self.warmup_steps])

    @property
    def rests(self) -> bool:
        """Whether a row moves without a gradient, so that it rests while no batch touches it."""
        decays = self.weight_decay > 0 and self.decay_tables
        moving = self.name in ("adam", "lion") or (self.name == "sgd" and self.momentum > 0)
        return moving or decays or self.l2_to_start > 0

    def build(self, steps: int, layers: Layers = ()) -> optax.GradientTransformation:
        """Returns the transform for a run of so many steps (the schedule wants to know).

        Args:
          layers: those of the model (`jaxrec.Functional`), for `layer_decay` and `unfreeze_every`.

        Raises:
          UserError: when these want layers and the model has none.
        """
        if not layers and (self.layer_decay != 1 or self.unfreeze_every):
            raise UserError(
                "config.optimizer.layer_decay and config.optimizer.unfreeze_every want to know the "
                "model's layers, and this model does not say them. Leave them at 1 and 0, or give "
                "the module a `layers`."
            )
        parts: list[optax.GradientTransformation] = []
        if self.clip_norm:
            parts.append(clip_by_global_norm(self.clip_norm))
        if self.l2_to_start:
            parts.append(add_l2_to_start(self.l2_to_start))
        match self.name:
            case "adam":
                parts.append(optax.scale_by_adam(self.b1, self.b2, self.eps))
            case "adagrad":
                parts.append(optax.scale_by_rss(self.initial_accumulator, self.eps))
            case "rowwise_adagrad":
                parts.append(scale_by_rowwise_rss(self.initial_accumulator, self.eps))
            case "sgd":
                parts.append(optax.trace(self.momentum) if self.momentum else optax.identity())
            case "lion":
                parts.append(optax.scale_by_lion(self.b1, self.b2))
        if self.weight_decay:

            def decays(params: Params) -> Any:
                def choose(path: Any, leaf: Any) -> bool:
                    return leaf.ndim > 1 and (self.decay_tables or table_of(path) is None)

                return jax.tree_util.tree_map_with_path(choose, params)

            parts.append(optax.add_decayed_weights(self.weight_decay, mask=decays))
        parts.append(optax.scale_by_learning_rate(self.schedule(steps)))
        if self.layer_decay != 1:
            parts.append(scale_by_layer(layers, self.layer_decay))
        if self.unfreeze_every:
            parts.append(unfreeze_layers(layers, self.unfreeze_every))
        return optax.chain(*parts)
