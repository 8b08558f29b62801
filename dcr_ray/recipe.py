"""A Recipe: every hyper-parameter that changes what is trained, in coordinates that carry over between model sizes.

It knows nothing of hardware: ranks, micro-batches and ZeRO stages belong to a Shape and never change a result.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

LossName = Literal["circle", "infonce", "ntxent", "supcon", "triplet"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ContrastiveRecipe(_Frozen):
    """The DCR stage: a contrastive loss at the output of one middle layer (arXiv 2603.03323)."""

    layer_depth: float = Field(0.5, gt=0, le=1, description="l/L, the layer's depth as a share of all layers")
    frozen_depth: float = Field(
        0.0, ge=0, lt=1, description="share of all layers, from the bottom, that the stage leaves as they are"
    )
    loss: LossName = Field("circle", description="which contrastive loss")
    pairing: Literal["per_anchor", "all_pairs"] = Field(
        "per_anchor", description="one loss term per anchor, or one for the batch"
    )
    margin: float = Field(0.25, gt=0, lt=1, description="margin m of the circle and triplet losses")
    scale: float = Field(
        32.0, gt=0, le=1024, description="gamma of the circle loss, 1/temperature of InfoNCE, NT-Xent and SupCon"
    )
    strength: float = Field(
        1.6e-4,
        gt=0,
        le=1,
        description="learning rate x scale; the two act together, so the product is what is searched",
    )
    epochs: float = Field(1.0, gt=0, le=100, description="passes over the seemingly toxic training prompts")
    batch_size: int = Field(32, ge=4, le=4096, description="prompts per step over all ranks")
    toxic_share: float = Field(0.5, gt=0, lt=1, description="share of toxic prompts in a batch")
    pooling: Literal["last", "mean"] = Field("last", description="token whose state stands for the prompt")
    centering: Literal["none", "batch"] = Field(
        "batch", description="what is subtracted from the states before the cosine"
    )
    weight_decay: float = Field(0.0, ge=0, le=1)
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    gradient_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    max_prompt_tokens: int = Field(256, ge=8, le=8192)
    prompts_per_class: int | None = Field(
        None, ge=2, description="most training prompts of each class, a larger number with all of a smaller's"
    )
    general_share: float = Field(
        0.0, ge=0, le=4, description="general prompts in a step on top of the batch, as a share of its size; 0 is none"
    )
    general_as: Literal["kept_only", "own_class", "seemingly_toxic"] = Field(
        "kept_only",
        description="what general prompts are in the loss: only kept near the base model by `retention`, a third "
        "class, or of one class with the seemingly toxic",
    )
    retention: float = Field(
        0.0,
        ge=0,
        description="weight of |h - h_base|^2 / |h_base|^2 of the general prompts' states, which keeps what they mean",
    )
    negatives: Literal["all", "same_source"] = Field(
        "all",
        description="which pairs across classes are pushed apart; same_source leaves out those whose prompts come from "
        "different files, since a model can tell such pairs apart by their source",
    )
    early_stop: Literal["never", "held_out_auroc", "held_out_margin"] = Field(
        "never", description="figure of held-out prompts whose standstill ends the stage"
    )
    early_stop_every: int = Field(10, ge=1, description="steps between two looks at that figure")
    early_stop_patience: int = Field(2, ge=1, description="looks in a row without a new best after which it ends")

    @property
    def learning_rate(self) -> float:
        return self.strength / self.scale

    def layer(self, layer_count: int) -> int:
        """The layer l in 1..L whose output carries the loss."""
        return min(layer_count, max(1, round(self.layer_depth * layer_count)))

    def frozen_layers(self, layer_count: int) -> int:
        """How many of the lowest layers do not train: fewer than l, so that at least one does."""
        return min(self.layer(layer_count) - 1, int(self.frozen_depth * layer_count))

    @model_validator(mode="after")
    def _trains_a_layer(self) -> ContrastiveRecipe:
        if self.frozen_depth >= self.layer_depth:
            raise ValueError(f"frozen_depth {self.frozen_depth} leaves no layer below layer_depth {self.layer_depth}")
        return self

    @model_validator(mode="after")
    def _general_prompts_for_retention(self) -> ContrastiveRecipe:
        if self.retention and not self.general_per_batch:
            raise ValueError(
                f"retention {self.retention} needs general prompts in the batch; set general_share above 0"
            )
        return self

    @model_validator(mode="after")
    def _both_classes_in_a_batch(self) -> ContrastiveRecipe:
        toxic = self.toxic_per_batch
        if min(toxic, self.batch_size - toxic) < 2:
            raise ValueError(
                f"a batch of {self.batch_size} with toxic_share {self.toxic_share} holds {toxic} toxic prompts; "
                "both classes need at least 2"
            )
        return self

    @property
    def toxic_per_batch(self) -> int:
        return round(self.batch_size * self.toxic_share)

    def identity(self) -> dict[str, Any]:
        """All fields as plain values. What is off is left out where it came later than stages that are finished: their
        identity stays as it was."""
        later = (
            "frozen_depth",
            "prompts_per_class",
            "general_share",
            "general_as",
            "retention",
            "negatives",
            "early_stop",
        )
        off = {name for name in later if getattr(self, name) == type(self).model_fields[name].default}
        if "early_stop" in off:
            off |= {"early_stop_every", "early_stop_patience"}
        return self.model_dump(mode="json", exclude=off)

    @property
    def general_per_batch(self) -> int:
        return round(self.batch_size * self.general_share)


class LoraRecipe(_Frozen):
    """Low-rank adapters instead of full fine-tuning; merged into the weights when the stage ends."""

    rank: int = Field(8, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(("q_proj", "k_proj", "v_proj"), min_length=1)


class SftRecipe(_Frozen):
    """The safety SFT stage: general instructions and safety pairs, next-token loss."""

    learning_rate: float = Field(3e-5, gt=0, le=1)
    epochs: float = Field(1.0, gt=0, le=100)
    batch_size: int = Field(8, ge=1, le=4096, description="sequences per step over all ranks")
    max_tokens: int = Field(256, ge=16, le=131072, description="longer sequences are cut")
    mask_prompt: bool = Field(True, description="loss on the answer only")
    safety_share: float | None = Field(
        None, gt=0, lt=1, description="share of safety pairs; none takes the pairs as they are"
    )
    safety_pairs: int | None = Field(
        None, ge=1, description="most safety pairs, a larger number with all of a smaller's; none takes all"
    )
    lora: LoraRecipe | None = Field(None, description="none means full fine-tuning")
    weight_decay: float = Field(0.0, ge=0, le=1)
    warmup_share: float = Field(0.05, ge=0, lt=1)
    final_lr_share: float = Field(
        0.1, ge=0, le=1, description="learning rate at the last step, as a share of the highest"
    )
    gradient_clip: float = Field(1.0, gt=0)


class AugmentRecipe(_Frozen):
    """STL-aug: seemingly toxic prompts with helpful answers join the SFT mix (arXiv 2309.07875, section 5)."""

    pairs: int | None = Field(None, ge=1, description="how many of `data.train.augment`; none takes all")


class SurgicalRecipe(_Frozen):
    """Surgical (arXiv 2410.03415): the direction of false refusal, without its part along the true one, is taken out of
    the weights. Defaults are the published ones but for `fewest_refused`, which is ours."""

    orthogonality: float = Field(
        1.0, ge=0, le=1, description="lambda: share of the true refusal direction that is left standing"
    )
    prompts: int = Field(128, ge=4, description="most prompts of a kind that the directions are means of")
    validation_prompts: int = Field(32, ge=4, description="prompts of a kind by which layer and position are chosen")
    kl_bound: float = Field(0.2, gt=0, description="most that harmless prompts' first token may change, in nats")
    deepest: float = Field(0.8, gt=0, le=1, description="layers from this share of the depth on are no candidates")
    layer_step: int = Field(1, ge=1, description="every so many layers is a candidate")
    positions: int | None = Field(None, ge=1, description="last so many template tokens; none takes all of them")
    fewest_refused: int = Field(8, ge=2, description="really refused prompts of each refused kind that are needed")


class ScansRecipe(_Frozen):
    """SCANS (arXiv 2408.11491): steering at inference by a harmfulness test on hidden states. Anchors are the study's
    toxic and general prompts instead of AdvBench's and TruthfulQA's; decoding is the study's, without the published
    repetition penalty. Layers are relative: published are 10 to 19 of 32."""

    anchors: int = Field(64, ge=4, description="most prompts of each kind")
    strength: float = Field(3.5, gt=0, description="alpha; 3.5 is published for Llama 2, 4 for Vicuna")
    strength_in: Literal["absolute", "residual_norm"] = Field(
        "absolute", description="what alpha is measured in: 1, or the mean length of the layer's states"
    )
    threshold: float | None = Field(
        0.75, ge=-1, le=1, description="T, from .6 to .75 by test set in the paper; none sets it between the anchors"
    )
    first_depth: float = Field(10 / 32, ge=0, lt=1, description="share of the layers below the first steered one")
    last_depth: float = Field(20 / 32, gt=0, le=1, description="share of the layers below the first one not steered")
    affirmative: str = Field(" Sure", min_length=1, description="beginning of an answer that the test appends")

    @model_validator(mode="after")
    def _some_layers(self) -> ScansRecipe:
        if self.first_depth >= self.last_depth:
            raise ValueError(f"first_depth {self.first_depth} leaves no layer below last_depth {self.last_depth}")
        return self

    def layers(self, layer_count: int) -> range:
        """The steered layers, counted from 0."""
        first = min(layer_count - 1, round(self.first_depth * layer_count))
        return range(first, max(first + 1, round(self.last_depth * layer_count)))


class ActorRecipe(_Frozen):
    """ACTOR (arXiv 2507.04250): one layer is fine-tuned towards each prompt's own activation, moved along the refusal
    direction by a multiple of its projection. The paper's alpha and learning rate are not known to us."""

    layer_depth: float | None = Field(None, gt=0, le=1, description="l/L; none takes the layer of the best silhouette")
    alpha: float = Field(0.5, gt=0, description="share of the projection that is added or taken away")
    learning_rate: float = Field(1e-4, gt=0, le=1)
    epochs: int = Field(3, ge=1, le=100, description="the direction is computed anew before each")
    batch_size: int = Field(16, ge=1, le=4096)
    prompts: int = Field(128, ge=4, description="most prompts of a kind")


MethodName = Literal["stl", "stl-aug", "surgical", "scans", "actor", "dcr"]

EDIT_METHODS = ("surgical", "scans", "actor")
"""Methods that change or steer a model after its SFT, which is the baseline's."""

SECTION_OF_METHOD: dict[str, str] = {
    "stl-aug": "augment",
    "surgical": "surgical",
    "scans": "scans",
    "actor": "actor",
    "dcr": "dcr",
}
"""The section of a recipe that belongs to a method alone."""

METHOD_SECTIONS: dict[str, type[BaseModel]] = {
    "dcr": ContrastiveRecipe,
    "augment": AugmentRecipe,
    "surgical": SurgicalRecipe,
    "scans": ScansRecipe,
    "actor": ActorRecipe,
}


class Recipe(_Frozen):
    """One full set of hyper-parameters. The method is what is done besides the ordinary safety SFT.

    `stl` is the SFT alone, the baseline. A section of another method is dropped, so that two recipes that do the same
    are the same; `dcr: null` says `method: stl`.
    """

    method: MethodName = Field("dcr", description="what is done besides safety SFT")
    dcr: ContrastiveRecipe | None = Field(default_factory=ContrastiveRecipe)
    sft: SftRecipe = Field(default_factory=SftRecipe)
    augment: AugmentRecipe | None = Field(default_factory=AugmentRecipe)
    surgical: SurgicalRecipe | None = Field(default_factory=SurgicalRecipe)
    scans: ScansRecipe | None = Field(default_factory=ScansRecipe)
    actor: ActorRecipe | None = Field(default_factory=ActorRecipe)
    system_prompt: str | None = Field(None, description="none keeps the chat template's own default")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _only_the_methods_own_section(self) -> Recipe:
        own = SECTION_OF_METHOD.get(self.method)
        if own is not None and getattr(self, own) is None:
            if own != "dcr":
                raise ValueError(f"method {self.method} needs its section `{own}`")
            object.__setattr__(self, "method", "stl")
        for section in SECTION_OF_METHOD.values():
            if section != own:
                object.__setattr__(self, section, None)
        return self

    @property
    def edit(self) -> SurgicalRecipe | ScansRecipe | ActorRecipe | None:
        """What is done to the model after SFT, if anything is."""
        return self.surgical or self.scans or self.actor
