"""Makes the example checkpoint from nothing but this Python's standard library.

    python examples/make_example_model.py train    --work WORK --minutes 75
    python examples/make_example_model.py export   --work WORK --out examples/tiny-llama-stdlib
    python examples/make_example_model.py evaluate --model examples/tiny-llama-stdlib
    python examples/make_example_model.py plan     --model examples/tiny-llama-stdlib

Needs torch, tokenizers, safetensors, numpy and, for `export`, transformers. The steps themselves are in training/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch.multiprocessing import spawn
from training.batches import text_row
from training.choose_plan import Search, grow, head_similarity, recall_sample, single_costs, text_sample
from training.corpus import Corpus, encode_files, read_corpus
from training.evaluate import compare_on_text, exams, load, recall, windows
from training.model import Config, TinyLlama
from training.plan import Plan
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


def open_model(folder: Path) -> tuple[TinyLlama, TaskMaker, np.ndarray, Corpus]:
    """A published checkpoint, the maker of its tasks with held-out filler, the held-out tokens, the corpus."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    corpus = read_corpus()
    held_out = encode_files(tokenizer, corpus.held_out, END_OF_TEXT)
    return load(folder), TaskMaker(tokenizer, held_out), held_out, corpus


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


def evaluate(args: argparse.Namespace) -> None:
    model, maker, held_out, _ = open_model(args.model)
    plan_file = args.plan or args.model / "plan.json"
    plan = Plan.from_json(plan_file.read_text(encoding="utf-8")) if plan_file.exists() else Plan.dense(model.config)
    report = {
        "text": compare_on_text(model, windows(held_out, model.config.n_ctx, args.windows), plan),
        "recall_dense": recall(model, maker, Plan.dense(model.config), args.documents),
        "recall_shared": recall(model, maker, plan, args.documents),
        "saving": plan.saving(model.config, model.config.n_ctx),
    }
    print(json.dumps(report, indent=2))


def plan(args: argparse.Namespace) -> None:
    model, _, held_out, corpus = open_model(args.model)
    dense = Plan.dense(model.config)
    rng = np.random.default_rng(args.seed)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    train_ids = encode_files(tokenizer, corpus.train, END_OF_TEXT)
    n_ctx, n_near = model.config.n_ctx, dense.n_sink + dense.n_recent
    texts = [text_row(train_ids, n_ctx - 1, rng).ids for _ in range(args.samples)]
    samples = [text_sample(model, torch.tensor(ids), n_near) for ids in texts]
    train_maker = TaskMaker(tokenizer, train_ids)
    samples += [recall_sample(model, doc) for doc in exams(train_maker, n_ctx, args.samples, seed=args.seed)]
    search = Search(model, samples, head_similarity(samples, dense), dense)
    changes = list(single_costs(search))
    followers = [change for change in changes if change.kind == "follower"]
    grow(search, followers, min(args.share_first, args.target), args.budget / 2)
    grow(search, changes, args.target, args.budget)
    measured = compare_on_text(model, windows(held_out, n_ctx, args.windows), search.plan)
    digest = hashlib.sha256("".join(corpus.held_out).encode()).hexdigest()
    saving = search.plan.saving(model.config, n_ctx)
    search.plan.calibration = {"corpus_sha256": digest, **measured, "saving": round(saving, 4)}
    aside = args.model / "plan.json.new"
    aside.write_text(search.plan.to_json(), encoding="utf-8")
    aside.replace(args.model / "plan.json")
    print(json.dumps(search.plan.calibration, indent=2))


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
    command = commands.add_parser("evaluate", help="held-out perplexity and recall, dense and with the plan")
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--plan", type=Path, help="default: MODEL/plan.json")
    command.add_argument("--windows", type=int, default=40, help="held-out sequences of full length")
    command.add_argument("--documents", type=int, default=48, help="recall documents per context length")
    command.set_defaults(run=evaluate)
    command = commands.add_parser("plan", help="choose plan.json by measuring")
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--target", type=float, default=0.4, help="share of the cache to save at full length")
    command.add_argument("--share-first", type=float, default=0.2, help="saved by followers before locals are tried")
    command.add_argument("--budget", type=float, default=0.02, help="KL divergence allowed, text and recall together")
    command.add_argument("--samples", type=int, default=3, help="calibration sequences of each sort")
    command.add_argument("--windows", type=int, default=40)
    command.set_defaults(run=plan)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
