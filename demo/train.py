"""Train the demo CLIP from scratch on glyphs that it draws itself; writes an open_clip local-dir.

    python demo/train.py --out clip_retrieval/demo/model

Three phases, each with its own loss, all of them image-text contrast over every glyph name at once:

1. image: the image tower learns to point at a table of class vectors, each the sum of its name's word
   vectors and a part of its own. A full softmax over all names teaches far faster than a batch's own negatives.
2. text: the text tower learns captions and parts of captions against the mean image embedding of each glyph.
3. joint: both towers together, names encoded by the text tower in every step, with those of other glyphs as negatives.

Seeded. A checkpoint after each phase lets a stopped run go on (--checkpoints); a run that goes on draws other random
numbers than one that was never stopped, so its weights differ.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from augment import MEAN, STD, Painter, Strength
from captions import Caption, CaptionMaker
from evaluate import name_recall
from glyphs import load_glyphs
from open_clip import SimpleTokenizer
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional

MODEL_CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 20, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}
PREPROCESS_CONFIG = {"mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
TEXT_POSITIONS = 24  # enough for every caption; what stands after the end-of-text token changes nothing
START, END = 49406, 49407


@dataclass(frozen=True)
class Plan:
    """How long each phase lasts and how much it takes per step."""

    image_steps: int
    text_steps: int
    joint_steps: int
    image_batch: int = 128
    caption_batch: int = 256
    seed: int = 0


class ClassTable(nn.Module):
    """A vector for each glyph name: its words' vectors and a part of its own."""

    def __init__(self, has_word: Tensor, dim: int) -> None:
        super().__init__()
        share = has_word.float()
        self.register_buffer("share", share / share.sum(1, keepdim=True).clamp(min=1).sqrt())
        self.words = nn.Parameter(torch.randn(has_word.shape[1], dim))
        self.own = nn.Parameter(torch.randn(has_word.shape[0], dim) * 0.7)

    def forward(self) -> Tensor:
        return functional.normalize(self.share @ self.words + self.own, dim=-1)


class Trainer:
    """Holds the towers, the painter and the captions; each phase is one method."""

    def __init__(self, plan: Plan, strength: Strength) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.glyphs = load_glyphs()
        self.captions = CaptionMaker([glyph.name for glyph in self.glyphs], plan.seed)
        self.painter = Painter(self.glyphs, strength)
        self.rng = torch.Generator().manual_seed(plan.seed)
        self.tokenizer = SimpleTokenizer()
        self.clip = CLIP(**MODEL_CONFIG).to(memory_format=torch.channels_last)
        self.table = ClassTable(self.captions.has_word, MODEL_CONFIG["embed_dim"])
        self.scale = nn.Parameter(torch.tensor(math.log(16.0)))
        self.prototypes = torch.zeros(len(self.glyphs), MODEL_CONFIG["embed_dim"])
        self.compiled = torch.compile(self.clip.visual)
        self.known_ids = self.forget_unknown_words()

    def forget_unknown_words(self) -> Tensor:
        """Zero the token rows that no caption uses, so that an unknown word adds nothing; return the others."""
        texts = [template for name in self.captions.names for template in (name, f"a picture of the {name}")]
        texts += [*self.captions.vocabulary, "emoji icon photo drawing image small an of"]
        known = self.tokenizer(texts).unique()
        keep = torch.zeros(len(self.clip.token_embedding.weight), 1)
        keep[known] = 1
        with torch.no_grad():
            self.clip.token_embedding.weight.mul_(keep)
        return known

    def phase_image(self) -> None:
        towers = [self.clip.visual, self.table]
        for step in self.steps("image", self.plan.image_steps, towers, peak=2e-3):
            ids = self.some_glyphs(step)
            embeddings = self.encode_pictures(ids)
            loss = functional.cross_entropy(self.scale.exp() * embeddings @ self.table().T, ids)
            self.learn(loss)

    def phase_text(self) -> None:
        self.prototypes = self.measure_prototypes()
        for _ in self.steps("text", self.plan.text_steps, self.text_parts(), peak=2e-3):
            self.learn(self.caption_loss(self.prototypes))

    def phase_joint(self) -> None:
        towers = [self.clip.visual, *self.text_parts()]
        for step in self.steps("joint", self.plan.joint_steps, towers, peak=3e-4):
            ids = self.some_glyphs(step)
            embeddings = self.encode_pictures(ids)
            others = torch.randperm(len(self.glyphs), generator=self.rng)[:384]
            shown = torch.cat([ids, others[~torch.isin(others, ids)]])
            names = self.encode_texts([self.captions.whole(i).text for i in shown.tolist()])
            logits = self.scale.exp() * embeddings @ names.T
            loss = functional.cross_entropy(logits, torch.arange(len(ids)))
            with torch.no_grad():
                self.prototypes[ids] = functional.normalize(self.prototypes[ids].lerp(embeddings, 0.1), dim=-1)
            self.learn(loss + self.caption_loss(self.prototypes))

    def caption_loss(self, prototypes: Tensor) -> Tensor:
        captions = self.some_captions()
        texts = self.encode_texts([caption.text for caption in captions])
        logits = self.scale.exp() * texts @ prototypes.T
        return functional.cross_entropy(logits, self.captions.targets(captions))

    def some_captions(self) -> list[Caption]:
        """Return as many parts of names as whole names, of random glyphs."""
        ids = torch.randint(len(self.glyphs), (self.plan.caption_batch,), generator=self.rng).tolist()
        half = len(ids) // 2
        return [self.captions.whole(i) for i in ids[:half]] + [self.captions.partial(i) for i in ids[half:]]

    def some_glyphs(self, step: int) -> Tensor:
        """Return distinct glyphs; every third batch holds runs of neighbors, which look alike."""
        count = len(self.glyphs)
        if step % 3:
            return torch.randperm(count, generator=self.rng)[: self.plan.image_batch]
        starts = torch.randperm(count // 8, generator=self.rng)[: self.plan.image_batch // 8] * 8
        return (starts[:, None] + torch.arange(8)).flatten()

    def encode_pictures(self, ids: Tensor) -> Tensor:
        pixels = self.painter.paint(ids, self.rng).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = self.compiled(pixels)
        return functional.normalize(embeddings.float(), dim=-1)

    def encode_texts(self, texts: list[str]) -> Tensor:
        ids = self.with_unknown_words(self.tokenizer(texts)[:, :TEXT_POSITIONS])
        length = int((ids != 0).sum(1).max())
        ids = ids[:, :length]
        clip = self.clip
        with torch.autocast("cpu", torch.bfloat16):
            x = clip.token_embedding(ids) + clip.positional_embedding[:length]
            x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
            x = x[torch.arange(len(ids)), ids.argmax(-1)] @ clip.text_projection
        return functional.normalize(x.float(), dim=-1)

    def with_unknown_words(self, ids: Tensor) -> Tensor:
        """Insert a token that no caption uses into a tenth of the texts: it shall change nothing."""
        ids = ids.clone()
        for row in (torch.rand(len(ids), generator=self.rng) < 0.1).nonzero().flatten().tolist():
            length = int((ids[row] != 0).sum())
            if length < TEXT_POSITIONS:
                at = int(torch.randint(1, length, (1,), generator=self.rng))
                ids[row, at + 1 : length + 1] = ids[row, at:length].clone()
                ids[row, at] = self.unknown_token()
        return ids

    def unknown_token(self) -> int:
        while True:
            token = int(torch.randint(START, (1,), generator=self.rng))
            if token not in self.known_ids:
                return token

    def text_parts(self) -> list[nn.Module]:
        clip = self.clip
        loose = nn.ParameterList([clip.positional_embedding, clip.text_projection])
        return [clip.transformer, clip.token_embedding, clip.ln_final, loose]

    @torch.no_grad()
    def measure_prototypes(self, rounds: int = 16) -> Tensor:
        """Return the mean embedding [glyphs, dim] of each glyph over `rounds` training pictures."""
        self.clip.visual.eval()
        total = torch.zeros_like(self.prototypes)
        for _ in range(rounds):
            for ids in torch.arange(len(self.glyphs)).split(self.plan.image_batch):
                total[ids] += self.encode_pictures(ids)
        self.clip.visual.train()
        return functional.normalize(total, dim=-1)

    def steps(self, phase: str, count: int, parts: list[nn.Module], peak: float) -> Iterator[int]:
        """Yield step numbers, with warm-up and cosine decay of the learning rate and a line of progress."""
        parameters = [p for part in parts for p in part.parameters()]
        decayed = [p for p in parameters if p.ndim > 1 and p is not self.clip.token_embedding.weight]
        others = [p for p in parameters if p.ndim <= 1 or p is self.clip.token_embedding.weight]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": [*others, self.scale], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
        self.losses: list[float] = []
        start = time.perf_counter()
        for step in range(count):
            share = step / count
            rate = peak * min(1.0, (step + 1) / (0.03 * count)) * 0.5 * (1 + math.cos(math.pi * share))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            yield step
            if (step + 1) % 100 == 0 or step + 1 == count:
                loss = sum(self.losses[-100:]) / len(self.losses[-100:])
                elapsed = time.perf_counter() - start
                print(
                    f"{phase} {step + 1}/{count} loss {loss:.3f} scale {self.scale.exp():.1f} {elapsed:.0f} s",
                    flush=True,
                )
            if (step + 1) % 1500 == 0 or step + 1 == count:
                self.report(phase)

    def learn(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.scale.clamp_(max=math.log(60.0))
        self.losses.append(loss.item())

    def report(self, phase: str) -> None:
        """Print recall of names on pictures drawn by the other renderers."""
        self.clip.eval()
        with torch.no_grad():
            names = self.table() if phase == "image" else self.encode_names()
            for style in ("gallery", "hard"):
                figures = name_recall(self.clip, self.glyphs, names, style, seed=99)
                print(f"  {phase} {style}: {figures}", flush=True)
        self.clip.train()

    def encode_names(self) -> Tensor:
        ids = self.tokenizer([glyph.name for glyph in self.glyphs])
        return functional.normalize(self.clip.encode_text(ids).float(), dim=-1)

    @torch.no_grad()
    def settle_batch_norm(self, batches: int = 40) -> None:
        """Measure the batch statistics anew, in fp32, for the final weights."""
        for module in self.clip.visual.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        self.clip.visual.train()
        for step in range(batches):
            self.clip.visual(self.painter.paint(self.some_glyphs(step), self.rng))
        self.clip.eval()

    def state(self) -> dict[str, object]:
        return {
            "clip": self.clip.state_dict(),
            "table": self.table.state_dict(),
            "scale": self.scale.data,
            "prototypes": self.prototypes,
        }

    def restore(self, state: dict[str, object]) -> None:
        self.clip.load_state_dict(state["clip"])
        self.table.load_state_dict(state["table"])
        self.scale.data.copy_(state["scale"])
        self.prototypes = state["prototypes"]


def write_model(trainer: Trainer, out: Path) -> None:
    """Write the open_clip local-dir: fp16 weights, config, and the words that captions held."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        trainer.clip.logit_scale.copy_(trainer.scale)
    state = {
        name: value.half() if value.is_floating_point() else value for name, value in trainer.clip.state_dict().items()
    }
    state = {name: value.contiguous() for name, value in state.items()}
    save_file(state, out / "open_clip_model.safetensors")
    (out / "open_clip_model.safetensors").chmod(0o644)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "vocabulary.txt").write_text("\n".join(trainer.captions.vocabulary) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, default=Path("demo/checkpoints"))
    parser.add_argument("--image-steps", type=int, default=14000)
    parser.add_argument("--text-steps", type=int, default=4000)
    parser.add_argument("--joint-steps", type=int, default=400)
    parser.add_argument("--strength", type=float, default=0.8, help="how much the training pictures vary")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    plan = Plan(args.image_steps, args.text_steps, args.joint_steps, seed=args.seed)
    trainer = Trainer(plan, replace(Strength(), amount=args.strength))
    args.checkpoints.mkdir(parents=True, exist_ok=True)
    for phase in ("image", "text", "joint"):
        path = args.checkpoints / f"{phase}.pt"
        if path.exists():
            trainer.restore(torch.load(path, weights_only=True))
            continue
        getattr(trainer, f"phase_{phase}")()
        torch.save(trainer.state(), path)
    trainer.settle_batch_norm()
    trainer.report("final")
    write_model(trainer, args.out)


if __name__ == "__main__":
    main()
