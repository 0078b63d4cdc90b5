"""OWLv2 and Grounding DINO with random weights, against transformers' own functions."""

import base64
import itertools
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import resize
from transformers import (
    AutoModelForZeroShotObjectDetection,
    BertTokenizer,
    CLIPTokenizer,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2ImageProcessor,
    Owlv2Processor,
)

from jobs.contract import (
    Annotation,
    BoxPrompt,
    EmbeddingPrompt,
    PointPrompt,
    Prompt,
    Request,
    TextPrompt,
    parse_request,
)
from jobs.problems import Problem
from scripts.demo import iou
from tests import tiny
from worker.models import grounding_dino, hub, owlv2
from worker.models.base import Embedding, Finds, Pixels
from worker.models.grounding_dino import GroundingDino
from worker.models.owlv2 import Owlv2

CPU = torch.device("cpu")
SHAPES = [(64, 64), (40, 120), (97, 50), (1, 9)]  # height and width
CAT, DOG = TextPrompt(text="a cat"), TextPrompt(text="dog")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def owl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.owlv2(tmp_path_factory.mktemp("owlv2"))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.grounding_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def owl(owl_folder: Path) -> Any:
    model = hub.load("owlv2", CPU, None, owl_folder)
    assert isinstance(model, Owlv2)
    return model


@pytest.fixture(scope="module")
def dino(dino_folder: Path) -> Any:
    model = hub.load("grounding-dino", CPU, None, dino_folder)
    assert isinstance(model, GroundingDino)
    return model


def picture(height: int = 64, width: int = 64, seed: int = 0) -> Pixels:
    """Noise with a few large patches, so that places differ."""
    numbers = np.random.default_rng(seed)
    coarse = numbers.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    rows, columns = (np.arange(side) * 5 // side for side in (height, width))
    rough = coarse[rows][:, columns]
    return np.asarray(rough + numbers.integers(-20, 20, rough.shape)).clip(0, 255).astype(np.uint8)


def everything(*prompts: Prompt) -> Request:
    return Request(prompts=prompts, min_score=0, nms_iou=1, max_annotations=3000)


def ask(model: Any, images: Pixels | Mapping[str, Pixels], request: Request) -> list[Annotation]:
    parts = {"image": images} if isinstance(images, np.ndarray) else images
    item = model.prepare(parts, request)
    (raw,) = model.forward([item])
    finds = model.finish(raw, item)
    assert isinstance(finds, Finds)
    return finds.annotations


def embed(model: Owlv2, images: Mapping[str, Pixels], *prompts: Prompt) -> str:
    item = model.prepare(images, Request(task="embed", prompts=prompts))
    (raw,) = model.forward([item])
    embedding = model.finish(raw, item)
    assert isinstance(embedding, Embedding)
    return embedding.text


def same(ours: list[Annotation], theirs: Mapping[str, Any], size: tuple[int, int]) -> None:
    """Boxes, cut at the picture's edges, scores and labels are those of transformers."""
    edge = torch.tensor([*size, *size]).float()
    boxes = torch.minimum(theirs["boxes"].clamp(min=0), edge)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, scores = boxes[inside], theirs["scores"][inside]
    labels = [label for label, stays in zip(theirs["labels"], inside, strict=True) if stays]
    order = scores.argsort(descending=True)
    assert len(ours) == len(order) > 0
    got = torch.tensor([one.box for one in ours])
    torch.testing.assert_close(got, boxes[order], atol=1e-4 * max(size), rtol=0)
    scores_got = torch.tensor([one.score for one in ours])
    torch.testing.assert_close(scores_got, scores[order], atol=1e-4, rtol=0)
    assert [one.label for one in ours] == [labels[place] for place in order]


# --- OWLv2 with words ---


def owls_own(folder: Path, pixels: Pixels, texts: list[str]) -> dict[str, Any]:
    """transformers' whole way from a picture and words to boxes."""
    processor = Owlv2Processor(  # type: ignore[no-untyped-call]
        Owlv2ImageProcessor.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    )
    image = torch.from_numpy(pixels)
    inputs = processor(
        text=[texts], images=image, input_data_format="channels_last", return_tensors="pt"
    )
    network = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    with torch.inference_mode():
        outputs = network(**inputs)
    (found,) = processor.post_process_grounded_object_detection(
        outputs, threshold=0, target_sizes=[pixels.shape[:2]], text_labels=[texts]
    )
    return {**found, "labels": found["text_labels"], "outputs": outputs}


@pytest.mark.parametrize("shape", SHAPES)
def test_words_find_what_transformers_finds(
    owl: Owlv2, owl_folder: Path, shape: tuple[int, int]
) -> None:
    """The network sees a square, the user a picture that may be wide or tall."""
    pixels = picture(*shape)
    theirs = owls_own(owl_folder, pixels, ["a cat", "dog"])
    same(ask(owl, pixels, everything(CAT, DOG)), theirs, (shape[1], shape[0]))


def test_a_large_picture_is_made_smaller_and_its_boxes_larger_again(
    owl: Owlv2, owl_folder: Path
) -> None:
    """To the same as transformers finds in the smaller one, exactly along both sides."""
    pixels = picture(333, 641)
    small = resize(torch.from_numpy(pixels).permute(2, 0, 1), [66, 128], antialias=True)
    theirs = owls_own(owl_folder, small.permute(1, 2, 0).contiguous().numpy(), ["a cat", "dog"])
    theirs["boxes"] = theirs["boxes"] * torch.tensor([641 / 128, 333 / 66] * 2)
    same(ask(owl, pixels, everything(CAT, DOG)), theirs, (641, 333))


def test_a_panorama_takes_no_square_of_its_own_length(owl: Owlv2) -> None:
    item = owl.prepare({"image": picture(2, 60_000)}, everything(CAT))
    assert item.images["image"].pixels.shape == (3, tiny.OWLV2_SIDE, tiny.OWLV2_SIDE)
    assert item.images["image"].scale == (60_000, 128 * 2)


# --- OWLv2 with examples ---


def vector(text: str, owl: Owlv2) -> Tensor:
    """The first vector in an embedding."""
    data = base64.b64decode(text)[12:][: owl._record.size]
    return torch.tensor(owl._record.unpack(data)[1:])


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_an_example_is_the_patch_whose_box_overlaps_it_best(
    owl: Owlv2, owl_folder: Path, shape: tuple[int, int]
) -> None:
    pixels = picture(*shape)
    outputs = owls_own(owl_folder, pixels, ["dog"])["outputs"]
    boxes = box_convert(outputs.pred_boxes[0], "cxcywh", "xyxy") * max(shape)
    for drawn in [(3.0, 4.0, 30.0, 30.0), (20.0, 10.0, 45.0, 39.0)]:
        overlaps = [iou(drawn, tuple(box)) for box in boxes.tolist()]
        best = int(np.argmax(overlaps))
        mine = vector(embed(owl, {"image": pixels}, BoxPrompt(box=drawn)), owl)
        torch.testing.assert_close(mine, outputs.class_embeds[0, best], atol=1e-5, rtol=0)


def test_what_is_shown_is_the_most_alike_in_its_own_picture(
    owl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any patch's own box. The network's shift and scale by patch are left out for that."""
    owl = hub.load("owlv2", CPU, None, owl_folder)
    assert isinstance(owl, Owlv2)
    for layer in (owl._network.class_head.logit_shift, owl._network.class_head.logit_scale):
        layer.weight.data.zero_()
    pixels = picture()
    item = owl.prepare({"image": pixels}, everything(DOG))
    boxes = owl.forward([item])[0].boxes
    inside = ((boxes >= 0) & (boxes <= 64)).all(1).nonzero()[:, 0].tolist()
    assert len(inside) >= 10
    for patch in inside[::3]:
        x0, y0, x1, y1 = boxes[patch].tolist()
        request = everything(BoxPrompt(box=(x0, y0, x1, y1), label="thing"))
        item = owl.prepare({"image": pixels}, request)
        (raw,) = owl.forward([item])
        assert int(raw.scores[:, 0].argmax()) == patch
        first = owl.finish(raw, item)
        assert isinstance(first, Finds)
        assert first.annotations[0].score == 1
        assert first.annotations[0].box == pytest.approx((x0, y0, x1, y1), abs=1e-4)


def test_examples_on_other_pictures_and_embeddings_are_the_same(owl: Owlv2) -> None:
    """Several of them, which are combined, and words among them."""
    images = {"image": picture(50, 60, seed=1), "other": picture(90, 40, seed=2)}
    shown: list[Prompt] = [
        BoxPrompt(box=(2, 3, 30, 20), image="other"),
        BoxPrompt(box=(5, 40, 35, 80), image="other"),
        TextPrompt(text="dog", label="object"),
    ]
    direct = ask(owl, images, everything(*shown))
    data = embed(owl, images, *shown)
    again = ask(owl, images["image"], everything(EmbeddingPrompt(data=data)))
    assert len(direct) == len(again) > 30
    for one, other in zip(direct, again, strict=True):
        assert one.box == other.box
        assert one.score == pytest.approx(other.score, abs=1e-5)
    alone = ask(owl, images, everything(shown[0]))
    assert [find.score for find in alone] != [find.score for find in direct]


def test_a_point_means_the_surest_object_that_holds_it(owl: Owlv2, owl_folder: Path) -> None:
    pixels = picture(40, 120)
    outputs = owls_own(owl_folder, pixels, ["dog"])["outputs"]
    boxes = box_convert(outputs.pred_boxes[0], "cxcywh", "xyxy") * 120
    for x, y in [(20.0, 20.0), (60.0, 30.0), (99.0, 5.0)]:
        holds = [a <= x <= c and b <= y <= d for a, b, c, d in boxes.tolist()]
        assert any(holds)
        sure = [
            o if h else -np.inf for o, h in zip(outputs.objectness_logits[0], holds, strict=True)
        ]
        best = int(np.argmax(sure))
        mine = vector(embed(owl, {"image": pixels}, PointPrompt(point=(x, y))), owl)
        torch.testing.assert_close(mine, outputs.class_embeds[0, best], atol=1e-5, rtol=0)
        (first, *_) = ask(owl, pixels, Request(prompts=(PointPrompt(point=(x, y)),)))
        clipped = np.clip(boxes[best].numpy(), 0, [120, 40, 120, 40])
        assert first.box == pytest.approx(clipped.tolist(), abs=1e-3)


def test_where_no_box_fits_the_patch_there_is_taken(
    owl: Owlv2, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = picture()
    squared = owl.prepare({"image": pixels}, everything(DOG)).images["image"]
    (seen,) = owl._look([squared])
    nowhere = owlv2.Seen(seen.features, torch.full((64, 4), -1.0))
    for x, y, patch in [(4.0, 4.0, 0), (60.0, 4.0, 7), (20.0, 60.0, 58), (64.0, 64.0, 63)]:
        box = BoxPrompt(box=(x - 1, y - 1, x + 1, y + 1))
        assert owl._patch(box, nowhere, squared) == patch
        assert owl._patch(PointPrompt(point=(x, y)), nowhere, squared) == patch


# --- OWLv2 with both ---


def test_words_and_examples_of_one_label_speak_together(owl: Owlv2) -> None:
    """Each patch by whichever fits better; an example's score .9 counts as words' .1."""
    images = {"image": picture(seed=1), "other": picture(seed=2)}
    word = TextPrompt(text="dog", label="pet")
    example = BoxPrompt(box=(2, 3, 30, 20), image="other", label="pet")
    item = owl.prepare(images, everything(word, example))
    (both,) = owl.forward([item])
    logits, _ = owl._network.class_predictor(
        owl._look([item.images["image"]])[0].features[None],
        torch.stack([vector(embed(owl, images, prompt), owl) for prompt in (word, example)])[None],
    )
    theirs = logits[0].sigmoid()
    torch.testing.assert_close(both.scores[:, 0], theirs[:, 0], atol=1e-5, rtol=0)
    order = theirs[:, 1].argsort()
    assert (both.scores[order, 1].diff() >= 0).all()
    at = torch.logit(torch.tensor(0.9)) - torch.logit(theirs[:, 1])  # from where .9 would be
    moved = torch.sigmoid(torch.logit(torch.tensor(0.1)) - at)
    torch.testing.assert_close(both.scores[:, 1], moved, atol=1e-4, rtol=0)
    scores = [find.score for find in ask(owl, images, everything(word, example))]
    best = both.scores.amax(1).sort(descending=True).values.tolist()
    assert all(any(abs(score - one) < 1e-5 for one in best) for score in scores)
    assert {find.label for find in ask(owl, images, everything(word, example))} == {"pet"}


def test_each_object_goes_to_the_prompt_that_fits_it_better(owl: Owlv2) -> None:
    pixels = picture()
    both = ask(owl, pixels, everything(CAT, DOG))
    alone = {one.box: one for one in ask(owl, pixels, everything(CAT))}
    assert {find.label for find in both} == {"a cat", "dog"}
    for find in both:
        if find.label == "a cat":
            assert alone[find.box].score == pytest.approx(find.score, abs=1e-5)
        elif find.box in alone:
            assert alone[find.box].score <= find.score + 1e-5


@pytest.mark.parametrize("kind", ["words", "box"])
def test_what_is_rather_like_a_negative_prompt_is_left_out(owl: Owlv2, kind: str) -> None:
    images = {"image": picture(), "other": picture(seed=2)}
    prompt: Prompt = CAT if kind == "words" else BoxPrompt(box=(2, 3, 30, 20), image="other")
    before = ask(owl, images, everything(prompt))
    negative: Prompt = TextPrompt(text="dog", negative=True)
    if kind == "box":
        negative = BoxPrompt(box=before[0].box, negative=True)
    after = ask(owl, images, everything(prompt, negative))
    assert 0 < len(after) < len(before)
    assert {one.box for one in after} < {one.box for one in before}
    assert kind == "words" or before[0].box not in {one.box for one in after}


def test_an_object_that_is_not_meant_takes_its_duplicates_along(owl: Owlv2) -> None:
    """A box that the user marked goes, and whatever overlaps it, whoever it is like."""
    before = ask(owl, picture(), msgspec.structs.replace(everything(CAT), nms_iou=None))
    marked = BoxPrompt(box=before[0].box, label="other", negative=True)
    after = ask(owl, picture(), msgspec.structs.replace(everything(CAT, marked), nms_iou=None))
    assert after
    assert max(iou(marked.box, one.box) for one in after) <= 0.6


def test_a_request_narrows_the_finds(owl: Owlv2) -> None:
    pixels = picture()
    full = everything(CAT, DOG)
    before = ask(owl, pixels, full)
    cut = before[len(before) // 2].score
    assert (
        ask(owl, pixels, msgspec.structs.replace(full, min_score=cut))
        == before[: len(before) // 2 + 1]
    )
    assert ask(owl, pixels, msgspec.structs.replace(full, max_annotations=3)) == before[:3]
    apart = ask(owl, pixels, msgspec.structs.replace(full, nms_iou=0.1))
    assert 0 < len(apart) < len(before)
    dogs = [one.box for one in apart if one.label == "dog"]
    assert max(iou(a, b) for a, b in itertools.combinations(dogs, 2)) <= 0.1


def test_what_owlv2_cannot_serve_is_told(owl: Owlv2) -> None:
    good = embed(owl, {"image": picture()}, CAT)
    for prompts, task, code, word in [
        ((TextPrompt(text="dog " * 15),), "detect", "text_too_long", "17 tokens"),
        ((CAT, TextPrompt(text=" . ")), "detect", "text_empty", r"\$.prompts\[1\]"),
        ((CAT, DOG), "embed", "prompt_unsupported", "one label"),
        ((CAT, TextPrompt(text="a cat", negative=True)), "embed", "prompt_unsupported", "negative"),
        ((EmbeddingPrompt(data=good),), "embed", "prompt_unsupported", "boxes, points or words"),
        ((EmbeddingPrompt(data="AAAA" + good[4:]),), "detect", "embedding_invalid", "this model"),
        (
            (EmbeddingPrompt(data=good[:4] + "AAAAAAAA" + good[12:]),),
            "detect",
            "embedding_invalid",
            "another version",
        ),
        ((EmbeddingPrompt(data=good[:60]),), "detect", "embedding_invalid", "cut off"),
        (
            (EmbeddingPrompt(data=good[:16] + re.sub("[^=]", "A", good[16:])),),
            "detect",
            "embedding_invalid",
            "no example",
        ),
    ]:
        with pytest.raises(Problem) as caught:
            owl.prepare({"image": picture()}, Request(task=task, prompts=prompts))  # type: ignore[arg-type]
        assert (caught.value.status, caught.value.code) == (422, code)
        assert re.search(word, caught.value.detail)
    assert owl.prepare({"image": picture()}, Request(prompts=(TextPrompt(text="dog " * 14),)))


# --- Grounding DINO ---


def dinos_own(folder: Path, pixels: Pixels, texts: list[str], threshold: float) -> Any:
    """transformers' whole way; what is found by no word but a stop has no label there."""
    processor = GroundingDinoProcessor(  # type: ignore[no-untyped-call]
        GroundingDinoImageProcessor.from_pretrained(folder), BertTokenizer.from_pretrained(folder)
    )
    image = torch.from_numpy(pixels)
    inputs = processor(
        text=[texts], images=image, input_data_format="channels_last", return_tensors="pt"
    )
    network = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    with torch.inference_mode():
        outputs = network(**inputs)
    ids = inputs["input_ids"][0]
    ends = torch.isin(ids, torch.tensor([101, 102, 1012]))
    outputs.logits = torch.where(ends, -20.0, outputs.logits[..., : len(ids)])
    (found,) = processor.post_process_grounded_object_detection(
        outputs, threshold=threshold, text_threshold=0, target_sizes=[pixels.shape[:2]]
    )
    return {"boxes": found["boxes"], "scores": found["scores"], "logits": outputs.logits[0]}


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_grounding_dino_finds_what_transformers_finds(
    dino: GroundingDino, dino_folder: Path, shape: tuple[int, int]
) -> None:
    """By each phrase's best token; the tokens that end a phrase do not count."""
    pixels = picture(*shape)
    theirs = dinos_own(dino_folder, pixels, ["red cat", "dog"], 0)
    ours = ask(dino, pixels, everything(TextPrompt(text="Red  Cat"), DOG))
    fits = theirs["logits"].sigmoid()  # [CLS] red cat . dog . [SEP]
    labels = np.where(fits[:, 1:3].amax(1) >= fits[:, 4], "Red  Cat", "dog")
    same(ours, {**theirs, "labels": labels.tolist()}, (shape[1], shape[0]))
    assert set(labels) == {"Red  Cat", "dog"}
    best = ask(dino, pixels, Request(prompts=(TextPrompt(text="red cat"), DOG), nms_iou=1))
    assert [one.score for one in best] == [one.score for one in ours if one.score >= 0.35]


def test_stops_in_a_text_part_phrases_of_one_label(dino: GroundingDino) -> None:
    item = dino.prepare(
        {"image": picture()},
        everything(
            TextPrompt(text="cats? dog.", label="pet"), TextPrompt(text="red", negative=True)
        ),
    )
    assert item.tokens.tolist() == [101, 1030, 1033, 1029, 1031, 1012, 1032, 1012, 102]
    assert item.spans.int().tolist() == [[0, 1, 1, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0, 0]]
    assert item.owners == [0, -1]


def test_negative_words_take_what_fits_them_better(dino: GroundingDino) -> None:
    red = TextPrompt(text="red cat")
    both = ask(dino, picture(), everything(red, DOG))
    left = ask(dino, picture(), everything(red, TextPrompt(text="dog", negative=True)))
    assert left == [one for one in both if one.label == "red cat"]
    assert 0 < len(left) < len(both)


def test_what_grounding_dino_cannot_serve_is_told(dino: GroundingDino) -> None:
    for prompts, code, word in [
        (
            (CAT, TextPrompt(text="dog " * 20)),
            "text_too_long",
            r"prompts\[1\].*26 tokens.*reads 24",
        ),
        ((TextPrompt(text="?"),), "text_empty", "no word"),
        ((TextPrompt(text="\N{ZERO WIDTH SPACE}"),), "text_empty", "no word"),
    ]:
        with pytest.raises(Problem) as caught:
            dino.prepare({"image": picture()}, Request(prompts=prompts))
        assert (caught.value.status, caught.value.code) == (422, code)
        assert re.search(word, caught.value.detail)
    with pytest.raises(Problem) as caught:
        dino.prepare({"image": picture(1, 1000)}, Request(prompts=(CAT,)))
    assert caught.value.code == "image_too_narrow"


# --- both ---


def test_words_without_a_label_are_their_own() -> None:
    assert (CAT.label, TextPrompt(text="x" * 300).label) == ("a cat", "x" * 200)
    request = parse_request('{"prompts":[{"type":"text","text":"dog"}]}')
    assert request.prompts == (DOG,)


@pytest.mark.parametrize("name", ["owl", "dino"])
def test_a_result_does_not_depend_on_its_batch(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    examples = (BoxPrompt(box=(5, 5, 30, 30), label="dog"),) if name == "owl" else ()
    requests = [everything(CAT, DOG), everything(DOG, CAT), everything(*examples, CAT, DOG)]
    items = [
        model.prepare({"image": picture(seed=seed)}, asked) for seed, asked in enumerate(requests)
    ]
    assert len({model.bucket(item) for item in items}) == 1
    for item, raw in zip(items, model.forward(items), strict=True):
        together, alone = model.finish(raw, item), model.finish(model.forward([item])[0], item)
        assert len(together.annotations) == len(alone.annotations) > 0
        for one, other in zip(together.annotations, alone.annotations, strict=True):
            assert one.label == other.label
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert one.box == pytest.approx(other.box, abs=1e-2)


def test_only_what_needs_no_padding_shares_a_batch_of_grounding_dino(dino: GroundingDino) -> None:
    items = [
        dino.prepare({"image": picture(*shape)}, everything(*prompts))
        for shape, prompts in [((64, 64), (CAT,)), ((64, 64), (CAT, DOG)), ((64, 80), (CAT,))]
    ]
    assert len({dino.bucket(item) for item in items}) == 3


@pytest.mark.parametrize("name", ["owl", "dino"])
def test_half_precision_stays_inside(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU that has it: what comes out is in full and hardly differs; on this CPU, none."""
    model = request.getfixturevalue(name)
    item = model.prepare({"image": picture()}, everything(CAT, DOG))
    (full,) = model.forward([item])
    inside = []

    def half(device: torch.device) -> AbstractContextManager[object]:
        inside.append(device)
        return torch.autocast("cpu", torch.bfloat16)

    for module in (owlv2, grounding_dino):
        monkeypatch.setattr(module, "bfloat16", half)
    (rough,) = model.forward([item])
    assert inside == [CPU]
    assert rough.boxes.dtype == torch.float32
    assert not torch.equal(rough.boxes, full.boxes)
    span = 64 if name == "owl" else 1
    assert (rough.boxes - full.boxes).abs().median() < 0.02 * span


@pytest.mark.parametrize("name", ["owl", "dino"])
def test_one_picture_at_a_time_on_a_cpu(name: str, request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue(name).max_batch == 1
