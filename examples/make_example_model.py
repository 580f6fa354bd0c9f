"""Makes the example checkpoint from nothing but this Python's standard library.

    python examples/make_example_model.py train  --work WORK --minutes 75
    python examples/make_example_model.py export --work WORK --out examples/tiny-llama-stdlib
    python examples/make_example_model.py data   --work WORK --out adapt.jsonl          # rows for pysa-adapt

What it is worth, and its plan, come from pysa itself: `pysa perplexity`, `pysa recall`, `pysa plan`.

Needs torch, tokenizers, safetensors, numpy and, for `export`, transformers. The steps themselves are in training/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch.multiprocessing import spawn
from training.batches import task_row, text_row
from training.corpus import encode_files, read_corpus
from training.model import Config, TinyLlama
from training.publish import publish
from training.tasks import TaskMaker
from training.train import Trainer
from training.vocabulary import END_OF_TEXT, train_tokenizer


def prepare_tokenizer(work: Path) -> Tokenizer:
    """The tokenizer of this run, trained at first use."""
    path = work / "tokenizer.json"
    if not path.exists():
        tokenizer = train_tokenizer(read_corpus().train)
        tokenizer.save(str(path))
    return Tokenizer.from_file(str(path))


def train(args: argparse.Namespace) -> None:
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = prepare_tokenizer(args.work)
    corpus = read_corpus()
    ids = encode_files(tokenizer, corpus.train, END_OF_TEXT)
    print(f"{len(corpus.train)} files, {len(ids)} tokens, {sum(map(len, corpus.train))} characters", flush=True)
    if args.processes == 1:
        train_process(0, args, ids)
    else:
        (args.work / "rendezvous").unlink(missing_ok=True)
        spawn(train_process, (args, ids), nprocs=args.processes)


def train_process(rank: int, args: argparse.Namespace, ids: np.ndarray) -> None:
    """One of the training processes. With two, one takes the text and the other the tasks of every step."""
    torch.set_num_threads(max(1, args.threads // args.processes))
    if args.processes > 1:
        init = (args.work / "rendezvous").resolve().as_uri()
        dist.init_process_group("gloo", init_method=init, rank=rank, world_size=args.processes)
    tokenizer = prepare_tokenizer(args.work)
    trainer = Trainer(TaskMaker(tokenizer, ids), ids, args.work, args.minutes * 60, args.seed)
    trainer.resume()
    trainer.run()


def export(args: argparse.Namespace) -> None:
    model = TinyLlama(Config())
    model.load_state_dict(torch.load(args.work / "checkpoint.pt", weights_only=True)["model"])
    difference = publish(model.eval(), prepare_tokenizer(args.work), args.out)
    print(f"wrote {args.out}; largest difference from transformers' logits: {difference:.1e} of their range")


def data(args: argparse.Namespace) -> None:
    """Rows for pysa-adapt, as the model was trained on: source and tasks in turns, each as long as the context."""
    tokenizer, n_ctx = prepare_tokenizer(args.work), Config().n_ctx
    ids = encode_files(tokenizer, read_corpus().train, END_OF_TEXT)
    maker, rng = TaskMaker(tokenizer, ids), np.random.default_rng(args.seed)
    aside = args.out.with_name(args.out.name + ".new")
    with aside.open("w", encoding="utf-8") as file:
        for i in range(args.rows):
            row = text_row(ids, n_ctx - 1, rng) if i % 2 == 0 else task_row(maker, n_ctx, rng)
            print(json.dumps({"tokens": row.ids[:n_ctx]}), file=file)
    aside.replace(args.out)
    print(f"wrote {args.out}: {args.rows} rows of {n_ctx} tokens")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="train the tokenizer and the model")
    command.add_argument("--work", type=Path, required=True, help="folder for the checkpoint and the log")
    command.add_argument("--minutes", type=float, default=75.0)
    command.add_argument("--processes", type=int, choices=(1, 2), default=2, help="one thread each on a busy machine")
    command.set_defaults(run=train)
    command = commands.add_parser("export", help="write the Hugging Face folder and check it")
    command.add_argument("--work", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.set_defaults(run=export)
    command = commands.add_parser("data", help="rows of tokens for pysa-adapt")
    command.add_argument("--work", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True, help="a .jsonl file")
    command.add_argument("--rows", type=int, default=400)
    command.set_defaults(run=data)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
