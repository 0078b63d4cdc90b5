"""What to look for: examples on images, from flags, a file of prompts or existing labels.

Where the model can embed, each label's examples are turned into an embedding once and that goes
with every image; else the reference images go along each time.
"""

import argparse
import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from jobs.contract import MAIN_IMAGE, ModelInfo, parse_request
from jobs.problems import Problem
from jobs.settings import SettingsError
from scripts.client import Client
from scripts.sources import Inputs, Source

MAX_PROMPTS = 32  # in one request, see jobs/contract.py
_NUMBER = r"-?\d+(?:\.\d+)?"
_FORMS = {
    "box": (
        rf"{_NUMBER}(?:,{_NUMBER}){{3}}",
        "A box is [IMAGE:]X0,Y0,X1,Y1[:LABEL] in pixels, for example 52,30,110,88:coin",
    ),
    "point": (
        rf"{_NUMBER},{_NUMBER}",
        "A point is [IMAGE:]X,Y[:LABEL] in pixels, for example 81,59:coin",
    ),
}


class Example(NamedTuple):
    """A prompt as the contract has it, without its image, and the image that it lies on."""

    prompt: dict[str, Any]
    image: Source | None  # None for text

    @property
    def group(self) -> tuple[str, bool]:
        """Label and sign: what one embedding stands for."""
        return self.prompt["label"], self.prompt["negative"]


class Examples:
    """All examples of a run.

    Attributes:
        labels: of the positive ones, in the order they were given.
        labelled: keys of the images that have labels already.
    """

    def __init__(
        self, options: argparse.Namespace, inputs: Inputs, sources: Sequence[Source]
    ) -> None:
        self._find = _finder(inputs, sources)
        self._label = options.label
        self.labelled: set[str] = set()
        self._all = [
            *(self._place(text, "box", False, sources) for text in options.box),
            *(self._place(text, "box", True, sources) for text in options.not_box),
            *(self._place(text, "point", False, sources) for text in options.point),
            *(self._text(text) for text in options.text),
            *(each for path in options.prompts for each in self._file(path)),
        ]
        for path in options.from_labels:
            self._all += self._labels(path, options.examples)
        self.labels = list(
            dict.fromkeys(label for label, negative in (e.group for e in self._all) if not negative)
        )
        self._kept: dict[str, bytes] = {}  # references that are sent with each image
        self._embedded: dict[tuple[str, bool], list[str]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def prompts(self) -> list[dict[str, Any]]:
        """As in a request, to be checked against a model."""
        return [example.prompt for example in self._all]

    def digest(self) -> str:
        """The same for the same examples on the same pictures."""
        try:
            pictures = {e.image.key: e.image.read() for e in self._all if e.image}
        except OSError as error:
            raise SettingsError(f"An image with examples cannot be read: {error}") from None
        hashes = {key: hashlib.sha256(data).hexdigest() for key, data in pictures.items()}
        parts = [(e.prompt, hashes[e.image.key] if e.image else "") for e in self._all]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    async def compile(self, client: Client, model: ModelInfo, max_images: int) -> bool:
        """Get ready for any number of images; returns whether embeddings will be sent.

        Args:
            max_images: most images that the service takes in one request.

        Raises:
            SettingsError: the examples do not fit into one request.
            ServiceError: as `Client.embed`.
        """
        shown = [example for example in self._all if example.image]
        groups: dict[tuple[str, bool], list[Example]] = defaultdict(list)
        for example in shown:
            groups[example.group].append(example)
        if shown and "embed" in model.tasks and "embedding" in model.prompts:
            for group, examples in groups.items():
                for chunk in _chunks(examples, max_images):
                    prompts, images = _on_parts(chunk)
                    prompts = [prompt | {"negative": False} for prompt in prompts]
                    main = images.pop(MAIN_IMAGE)
                    data = await client.embed(main, prompts, model.name, images)
                    self._embedded.setdefault(group, []).append(data)
        else:
            keys = {example.image.key for example in shown if example.image}
            if len(keys) >= max_images:
                raise SettingsError(
                    f"The examples lie on {len(keys)} images, and this model needs them sent "
                    f"along: the service takes {max_images - 1} at most. Use fewer."
                )
        sent = sum(map(len, self._embedded.values())) + len(self._all) - len(shown)
        if (sent if self._embedded else len(self._all)) > MAX_PROMPTS:
            raise SettingsError(f"At most {MAX_PROMPTS} examples go with an image. Use fewer.")
        return bool(self._embedded)

    def for_image(self, source: Source) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
        """The prompts as they are sent with `source`, and the reference images they name."""
        if not self._embedded:
            return _on_parts(self._all, source, self._bytes)
        own = [e for e in self._all if e.image and e.image.key == source.key]
        texts = [example.prompt for example in self._all if example.image is None]
        elsewhere = {e.group for e in self._all if e.image and e.image.key != source.key}
        for shown in (own, []):  # what an image shows itself is sent as it was drawn
            embeddings = [
                {"type": "embedding", "data": data, "label": label, "negative": negative}
                for (label, negative), several in self._embedded.items()
                if not shown or (label, negative) in elsewhere
                for data in several
            ]
            prompts = [*(example.prompt for example in shown), *embeddings, *texts]
            if len(prompts) <= MAX_PROMPTS:
                break
        return prompts, {}

    def _bytes(self, source: Source) -> bytes:
        if source.key not in self._kept:
            self._kept[source.key] = source.read()
        return self._kept[source.key]

    def _place(self, text: str, kind: str, negative: bool, sources: Sequence[Source]) -> Example:
        numbers, told = _FORMS[kind]
        found = re.fullmatch(rf"(?:(?P<image>.+?):)?(?P<at>{numbers})(?::(?P<label>.+))?", text)
        if not found:
            raise SettingsError(f"{told}: {text}")
        if not found["image"] and not sources:
            raise SettingsError(f"There is no image yet; say which one it lies on: {text}")
        image = self._find(found["image"]) if found["image"] else sources[0]
        prompt = {
            "type": kind,
            kind: [float(number) for number in found["at"].split(",")],
            "label": found["label"] or self._label,
            "negative": negative,
        }
        return _checked(prompt, image)

    def _text(self, text: str) -> Example:
        return _checked(
            {"type": "text", "text": text, "label": text[:200], "negative": False}, None
        )

    def _file(self, path: Path) -> Iterable[Example]:
        """Prompts as the contract has them, a list or ``{"prompts": […]}``, with images by path."""
        document = _load(path)
        prompts = document.get("prompts") if isinstance(document, dict) else document
        if not isinstance(prompts, list) or not all(isinstance(p, dict) for p in prompts):
            raise SettingsError(f'{path}: expected {{"prompts": […]}}, or a list of prompts.')
        for prompt in prompts:
            image = prompt.pop("image", None)
            if image is None and prompt.get("type") in _FORMS:
                raise SettingsError(f"{path}: each box and point names its image.")
            label = str(prompt.get("text", self._label))[:200]  # words are their own label
            filled = {"label": label, "negative": False, **prompt}
            yield _checked(filled, self._find(image, path.parent) if image else None)

    def _labels(self, path: Path, count: int) -> list[Example]:
        """Up to `count` examples of each label of a COCO file, from small to large."""
        document = _load(path)
        try:
            files = {image["id"]: str(image["file_name"]) for image in document["images"]}
            names = {each["id"]: str(each["name"]) for each in document["categories"]}
            labels: dict[str, list[Any]] = {name: [] for name in names.values()}
            for each in document["annotations"]:
                if not each.get("iscrowd"):
                    width, height = each["bbox"][2:]
                    place = (width * height, files[each["image_id"]], each["bbox"])
                    labels[names[each["category_id"]]].append(place)
        except (KeyError, TypeError, ValueError):
            raise SettingsError(
                f"{path} is not COCO JSON with images, categories and boxes."
            ) from None
        found: dict[str, Source] = {}
        for name in dict.fromkeys(file for places in labels.values() for _, file, _ in places):
            try:
                found[name] = self._find(name, path.parent)
            except SettingsError:
                continue  # labelled, and not here
        self.labelled |= {source.key for source in found.values()}
        examples = []
        for label, places in labels.items():
            here = sorted(place for place in places if place[1] in found)
            for _, file, (x, y, width, height) in _spread(here, count):
                corners = [float(x), float(y), float(x + width), float(y + height)]
                prompt = {"type": "box", "box": corners, "label": label, "negative": False}
                examples.append(_checked(prompt, found[file]))
        if not examples:
            raise SettingsError(f"{path}: none of its labelled images is here.")
        return examples


def _finder(inputs: Inputs, sources: Sequence[Source]) -> Callable[..., Source]:
    by_name = {source.name: source for source in sources}
    by_key = {source.key: source for source in sources}

    def find(text: str, folder: Path | None = None) -> Source:
        """An image by path, or by its name in a folder or archive that is annotated."""
        for path in (Path(text), *([folder / text] if folder else [])):
            if path.is_file():
                return by_key.get(os.path.abspath(path)) or inputs.file(path)
        if text in by_name:
            return by_name[text]
        ends = [source for name, source in by_name.items() if name.endswith(f"/{text}")]
        if len(ends) == 1:
            return ends[0]
        raise SettingsError(f"{text} is not a file, and no image to annotate has this name.")

    return find


def _checked(prompt: dict[str, Any], image: Source | None) -> Example:
    try:
        parse_request(msgspec.json.encode({"prompts": [prompt]}))
    except Problem as problem:
        raise SettingsError(problem.detail.replace("$.prompts[0]", "a prompt")) from None
    return Example(prompt, image)


def _load(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as JSON: {error}.") from None


def _spread(places: Sequence[Any], count: int) -> list[Any]:
    """`count` of them, evenly from first to last; all if there are fewer."""
    count = min(count, len(places))
    return [places[(2 * at + 1) * len(places) // (2 * count)] for at in range(count)]


def _chunks(examples: list[Example], max_images: int) -> list[list[Example]]:
    """Pieces that fit into one request each."""
    chunks: list[list[Example]] = []
    images: set[str] = set()
    for example in sorted(examples, key=lambda e: e.image.key if e.image else ""):
        key = example.image.key if example.image else ""
        if not chunks or len(chunks[-1]) == MAX_PROMPTS or len(images | {key}) > max_images:
            chunks.append([])
            images = set()
        chunks[-1].append(example)
        images.add(key)
    return chunks


def _on_parts(
    examples: Sequence[Example],
    main: Source | None = None,
    read: Callable[[Source], bytes] = lambda source: source.read(),
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Prompts that name parts of a form, and these parts; the first image is the main one if
    there is none of its own."""
    parts = {main.key: MAIN_IMAGE} if main else {}
    images: dict[str, bytes] = {}
    prompts = []
    for example in examples:
        prompt = dict(example.prompt)
        if example.image:
            key = example.image.key
            if key not in parts:
                parts[key] = f"reference-{len(parts)}" if parts else MAIN_IMAGE
                images[parts[key]] = read(example.image)
            prompt["image"] = parts[key]
        prompts.append(prompt)
    return prompts, images
