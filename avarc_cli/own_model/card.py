"""The model card: README.md of a model folder, from the facts in its model.json."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from avarc_cli.names import to_line
from avarc_cli.words import counted

WORST = 5  # pairs of classes that are listed
MOST_CLASSES = 50  # that a table lists


def confusion(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of classes by how often the first was taken for the second, most often first, from predictions.jsonl."""
    wrong = Counter(
        (record["label_name"], record["prediction_name"]) for record in records if record["label_rank"] not in (None, 0)
    )
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    return [{"is": right, "taken_for": taken, "images": count} for (right, taken), count in ordered]


def write(name: str, facts: Mapping[str, Any]) -> str:
    """The text for people.

    Args:
        name: of the folder. facts: model.json.
    """
    parts = [_what(name, facts), _accuracy(facts), _classes(facts), _use(name, facts), _made(facts), _limits(facts)]
    return "\n\n".join(parts) + "\n"


def accuracy_text(held_out: Mapping[str, Any]) -> str:
    """A sentence about the accuracy on images that were held out."""
    low, high = held_out["accuracy_95"]
    right = f"{held_out['correct']:,} of {held_out['images']:,}"
    return f"{held_out['accuracy']:.1%} ({right}; 95 % interval {low:.1%} to {high:.1%})"


def _what(name: str, facts: Mapping[str, Any]) -> str:
    size = facts["sizes"]
    return (
        f"# {to_line(name)}\n\n"
        f"An image classifier for {counted(len(facts['classes']), 'class')}, made by `avarc train classifier`: a "
        f"generator of images ({facts['family']}) with its own tokenizer ({facts['tokenizer_family']}). An image is of "
        f"the class for which the generator finds it most probable. It reads images of {size['image_size']} x "
        f"{size['image_size']} pixels, as {counted(facts['tokens'], 'token')}; others are scaled."
    )


def _accuracy(facts: Mapping[str, Any]) -> str:
    held_out, plan = facts["held_out"], facts["tuned"]
    if held_out is None:
        return "## How well it does\n\nUnknown: no image was held out, since the classes have few."
    text = (
        "## How well it does\n\n"
        f"Accuracy on {counted(held_out['images'], 'image')} that it was not trained on: {accuracy_text(held_out)}."
    )
    if pairs := held_out["confused"][:WORST]:
        lines = [
            f"| {_cell(pair['is'])} | {_cell(pair['taken_for'])} | {counted(pair['images'], 'image')} |"
            for pair in pairs
        ]
        text += "\n\n" + "\n".join(["| is | was taken for | |", "|---|---|---|", *lines])
    if plan is None:
        return text + "\n\nIt scores every class to the end: there were too few images to tune a plan on."
    agreement = f"{plan['agreement']:.1%}"
    return (
        f"{text}\n\nThe tuned plan (`plan.json`, for `--plan auto`) keeps the prediction of scoring every class to the "
        f"end with a probability of at least {agreement}, and scores {plan['share_of_exhaustive']:.0%} of the tokens."
    )


def _classes(facts: Mapping[str, Any]) -> str:
    classes, data = facts["classes"], facts["data"]
    rows = [
        f"| {_cell(each['name'])} | {each['training_images']:,} | {each['held_out_images']:,} | "
        + ("" if each["accuracy"] is None else f"{each['accuracy']:.1%}")
        + " |"
        for each in classes[:MOST_CLASSES]
    ]
    more = f"\n\nand {len(classes) - MOST_CLASSES:,} more, in `model.json`" if len(classes) > MOST_CLASSES else ""
    left_out = f"; {counted(data['unreadable'], 'file')} could not be read" if data["unreadable"] else ""
    head = ["| class | images trained on | held out | accuracy |", "|---|---|---|---|"]
    return f"## Classes\n\nFrom `{to_line(data['source'])}`{left_out}.\n\n" + "\n".join([*head, *rows]) + more


def _use(name: str, facts: Mapping[str, Any]) -> str:
    plan = " --plan auto" if facts["plan"] else ""
    folder, first = to_line(name), shlex.quote(to_line(facts["classes"][0]["name"]))
    return (
        "## How to use it\n\n```sh\n"
        f"avarc classify photos/ --model {folder}/{plan} --out run\n"
        f"avarc explain photo.jpg --model {folder}/ --out why.png\n"
        f"avarc sample {first} --model {folder}/ --out drawn.png\n```"
    )


def _made(facts: Mapping[str, Any]) -> str:
    made, size = facts["made"], facts["sizes"]
    tokenizer, generator = size["tokenizer"], size["generator"]
    took = "" if made["took_minutes"] is None else f", in {made['took_minutes']:.1f} minutes"
    batches = [f"of {counted(size[f'{part}_batch'], 'image')}" for part in ("tokenizer", "generator")]
    return (
        "## How it was made\n\n"
        f"By avarc {made['avarc']} on {made['date']}{took} on {to_line(made['device'])}. Tokenizer: "
        f"{tokenizer['vocab_size']} codes, width {tokenizer['ch']}, {counted(made['tokenizer_steps'], 'step')} "
        f"{batches[0]}. Generator: depth {generator['depth']}, width {generator['width']}, "
        f"{counted(made['generator_steps'], 'step')} {batches[1]}. Images were changed at random ({made['augment']}"
        f"{', half of them mirrored' if made['flip'] else ''}); seed {made['seed']}."
    )


def _limits(facts: Mapping[str, Any]) -> str:
    return (
        "## Limits\n\n"
        "It knows these classes only, and gives one of them to any image. The accuracy holds for images like those "
        "of the folder: other cameras, light or backgrounds lower it. Nearly equal images on both sides of the split, "
        "such as frames of one video, make it look better than it is."
        + (
            "\n\nTraining was short for these images: more `--time` is likely to help."
            if facts["made"]["short"]
            else ""
        )
    )


def _cell(name: str) -> str:
    return to_line(name).replace("|", "\\|")
