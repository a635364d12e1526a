"""Trains the demo model on the CPU and writes its three checkpoints: early/, middle/ and final/.

    python train.py --minutes 104 --work work      (started again, it resumes from the work folder)
"""

import argparse
import itertools
import json
import random
import time
from pathlib import Path

import numpy
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

import corpus
from checkpoint import export
from model import Config, Llama
from muon import Muon
from tokenizer import renderer, train_tokenizer

HERE = Path(__file__).parent
STAGES = {"early": 0.06, "middle": 0.28, "final": 1.0}  # parts of the run
STEP_TOKENS = 4096
BLOCKS = 7  # rectangles of a step: conversations of like lengths
MATRIX_RATE, OTHER_RATE = 0.02, 3e-3
WARM_UP = 0.02
SAVE_SECONDS = 240


def prepare(work):
    """Tokenizer, token ids and answer masks of the corpus (kept in the work folder)."""
    saved, vocabulary = work / "corpus.npz", work / "tokenizer.json"
    if not saved.exists():
        render = renderer()
        texts = [render(c["messages"], c["tools"]) for c in corpus.training_conversations()]
        if not vocabulary.exists():
            train_tokenizer(texts[:60_000]).save(str(vocabulary))
        rows = [encoding.ids for encoding in Tokenizer.from_file(str(vocabulary)).encode_batch_fast(texts)]
        numpy.savez(saved, tokens=numpy.concatenate(rows).astype(numpy.int16), lengths=[len(row) for row in rows])
    data = numpy.load(saved)
    ends = numpy.cumsum(data["lengths"])[:-1]
    return Tokenizer.from_file(str(vocabulary)), numpy.split(data["tokens"].astype(numpy.int64), ends)


def answer_mask(row, start, role, end):
    """True where the next token belongs to an answer (its end mark included)."""
    mask, inside = numpy.zeros(len(row), bool), False
    for index in range(2, len(row) - 1):
        if row[index - 2] == start and row[index - 1] == role:
            inside = True
        mask[index] = inside
        if inside and row[index + 1] == end:
            inside = False
    return mask


def steps(rows, seed):
    """Endless steps of about STEP_TOKENS tokens: a random mixture, sorted in a few blocks by length."""
    rng = random.Random(seed)
    order, chosen, size = [], [], 0
    while True:
        if not order:
            order = list(range(len(rows)))
            rng.shuffle(order)
        chosen.append(rows[order.pop()])
        size += len(chosen[-1])
        if size >= STEP_TOKENS:
            yield chosen
            chosen, size = [], 0


def rectangles(chosen):
    """Splits rows sorted by length in BLOCKS groups with about the same number of tokens."""
    chosen = sorted(chosen, key=len)
    share, groups, size = sum(map(len, chosen)) / BLOCKS, [[]], 0
    for row in chosen:
        if size >= share * len(groups) and len(groups) < BLOCKS:
            groups.append([])
        groups[-1].append(row)
        size += len(row)
    return groups


def phase_ends():
    return list(itertools.accumulate(share for share, _ in corpus.PHASES))


def phase_rows(rows):
    """The rows of each phase of the corpus."""
    ends = [round(end * len(rows)) for end in phase_ends()]
    return [rows[start:end] for start, end in zip([0] + ends, ends)]


def phase_at(progress):
    return sum(progress >= end for end in phase_ends()[:-1])


class Batcher:
    def __init__(self, tokenizer):
        self.ids = [tokenizer.token_to_id(t) for t in ("<|im_start|>", "assistant", "<|im_end|>")]
        assert None not in self.ids

    def __call__(self, chosen):
        """Flat tokens, their blocks, the positions that predict an answer token, and these tokens."""
        tokens, masks, blocks = [], [], []
        for group in rectangles(chosen):
            length = len(group[-1])
            blocks.append((len(group), length))
            for row in group:
                tokens.append(numpy.pad(row, (0, length - len(row))))
                masks.append(numpy.pad(answer_mask(row, *self.ids), (0, length - len(row))))
        tokens, positions = numpy.concatenate(tokens), numpy.flatnonzero(numpy.concatenate(masks))
        return torch.from_numpy(tokens), blocks, torch.from_numpy(positions), torch.from_numpy(tokens[positions + 1])


def optimisers(model):
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    adam = torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    built = [Muon(matrices, lr=MATRIX_RATE), adam]
    for optimiser in built:
        for group in optimiser.param_groups:
            group["full_rate"] = group["lr"]
    return built


def rate_at(progress):
    """Warm-up, then a straight line down to zero."""
    if progress < WARM_UP:
        return (progress + 1e-3) / WARM_UP
    return max(0.002, 1 - progress)


class Run:
    """One training run of a given number of minutes, whose state survives a restart."""

    def __init__(self, options):
        self.work, self.out, self.seconds = options.work, options.out, options.minutes * 60
        self.tokenizer, self.rows = prepare(self.work)
        torch.manual_seed(corpus.SEED)
        self.model = Llama(Config(self.tokenizer.get_vocab_size()))
        self.optimisers = optimisers(self.model)
        self.step, self.tokens, self.spent, self.done = 0, 0, 0.0, []
        self.restore()

    def state_file(self):
        return self.work / "state.pt"

    def restore(self):
        if self.state_file().exists():
            state = torch.load(self.state_file())
            self.model.load_state_dict(state["model"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"]):
                optimiser.load_state_dict(saved)
            self.step, self.tokens, self.spent, self.done = state["counters"]

    def save(self):
        counters = (self.step, self.tokens, self.spent, self.done)
        state = {"model": self.model.state_dict(), "optimisers": [o.state_dict() for o in self.optimisers], "counters": counters}
        torch.save(state, self.state_file().with_suffix(".new"))
        self.state_file().with_suffix(".new").rename(self.state_file())

    def learn(self, batch):
        tokens, blocks, positions, targets = batch
        progress = self.spent / self.seconds
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["full_rate"] * rate_at(progress)
        loss = F.cross_entropy(self.model(tokens, blocks, positions), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        return loss.item()

    def log(self, loss):
        line = {"step": self.step, "loss": round(loss, 4), "tokens": self.tokens, "seconds": round(self.spent)}
        with open(self.work / "train.log", "a") as file:
            file.write(json.dumps(line) + "\n")

    def export_stages(self):
        for stage, part in STAGES.items():
            if stage not in self.done and self.spent >= part * self.seconds:
                export(self.model, self.tokenizer, self.out / stage)
                self.done.append(stage)

    def train(self):
        batcher, saved, average = Batcher(self.tokenizer), time.time(), None
        phases = [steps(rows, seed=self.step) for rows in phase_rows(self.rows)]
        while "final" not in self.done:
            began = time.time()
            chosen = next(phases[phase_at(self.spent / self.seconds)])
            loss = self.learn(batcher(chosen))
            average = loss if average is None else 0.95 * average + 0.05 * loss
            self.step, self.tokens = self.step + 1, self.tokens + sum(map(len, chosen))
            self.spent += time.time() - began
            self.export_stages()
            if self.step % 20 == 0:
                self.log(average)
            if time.time() - saved > SAVE_SECONDS or "final" in self.done:
                self.save()
                saved = time.time()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=104)
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    Run(options).train()


if __name__ == "__main__":
    main()
