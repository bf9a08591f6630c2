"""The commands around timelines: a list of codes, the vocabulary of a release, and the base of a timeline model."""

from __future__ import annotations

import argparse
from pathlib import Path

from site_agent.training.printing import print_document, print_error


def add_timeline_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the trainer's."""
    verb = verbs.add_parser(
        "make-timeline-base", help="make a small causal model over a vocabulary of codes, from a seed"
    )
    verb.add_argument("--vocabulary", type=Path, required=True, metavar="FILE", help="vocab.txt: one code a line")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument("--layers", type=at_least_one, default=2, metavar="N", help="default: 2")
    verb.add_argument("--heads", type=at_least_one, default=4, metavar="N", help="default: 4")
    verb.add_argument(
        "--width", type=at_least_one, default=64, metavar="N", help="a multiple of twice the heads (default: 64)"
    )
    verb.add_argument("--max-length", type=at_least_one, default=256, metavar="N", help="tokens (default: 256)")
    verb.add_argument("--seed", type=int, required=True, metavar="N", help="from 0")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(command=make_timeline_base_command)

    verb = verbs.add_parser("assemble-model", help="make a folder that transformers loads from a released whole model")
    verb.add_argument("--release", type=Path, required=True, metavar="DIR")
    verb.add_argument("--base-model", type=Path, required=True, metavar="DIR")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(command=assemble_model_command)

    verb = verbs.add_parser("make-code-list", help="make a list of codes the base of a vocabulary run")
    verb.add_argument("--codes", type=Path, required=True, metavar="FILE", help="one code a line, UTF-8")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(command=make_code_list_command)

    verb = verbs.add_parser("make-vocabulary", help="make vocab.txt from the release of a vocabulary run")
    verb.add_argument("--release", type=Path, required=True, metavar="DIR")
    verb.add_argument("--code-list", type=Path, required=True, metavar="DIR", help="as make-code-list wrote it")
    verb.add_argument("--out", type=Path, required=True, metavar="FILE")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(command=make_vocabulary_command)


def at_least_one(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        message = f"must be at least 1: {text}"
        raise argparse.ArgumentTypeError(message)
    return value


def make_timeline_base_command(arguments: argparse.Namespace) -> int:
    """``make-timeline-base``."""
    from site_agent.training.timeline_base import TimelineShape, make_timeline_base

    shape = TimelineShape(
        layers=arguments.layers, heads=arguments.heads, width=arguments.width, max_length=arguments.max_length
    )
    try:
        document = make_timeline_base(arguments.vocabulary, out=arguments.out, shape=shape, seed=arguments.seed)
    except ValueError as error:
        print_error({"code": "usage", "message": str(error), "facts": {}}, as_json=arguments.json)
        return 2
    print_document(document, as_json=arguments.json)
    return 0


def make_code_list_command(arguments: argparse.Namespace) -> int:
    """``make-code-list``."""
    from site_agent.training.code_list import make_code_list

    print_document(make_code_list(arguments.codes, out=arguments.out), as_json=arguments.json)
    return 0


def make_vocabulary_command(arguments: argparse.Namespace) -> int:
    """``make-vocabulary``."""
    from site_agent.training.code_list import make_vocabulary

    document = make_vocabulary(arguments.release, code_list=arguments.code_list, out=arguments.out)
    print_document(document, as_json=arguments.json)
    return 0


def assemble_model_command(arguments: argparse.Namespace) -> int:
    """``assemble-model``."""
    from site_agent.training.assembling import assemble_model

    document = assemble_model(arguments.release, base_model=arguments.base_model, out=arguments.out)
    print_document(document, as_json=arguments.json)
    return 0
