"""What travels: requests, prompts, results, and what a worker says of itself.

Boxes are ``(x0, y0, x1, y1)`` and points ``(x, y)`` in pixels of the image as displayed (EXIF
orientation applied), origin at the top left corner.
"""

from collections.abc import Collection
from typing import Annotated as Hint
from typing import Any, Literal

import msgspec
from msgspec import Meta, Struct

from jobs.problems import Problem, unprocessable

Box = tuple[float, float, float, float]
Task = Literal["detect", "embed"]
Output = Literal["box", "mask", "keypoints"]
Match = Literal["strict", "normal", "kind"]
PromptType = Literal["box", "point", "text", "embedding"]
Label = Hint[str, Meta(min_length=1, max_length=200)]
Unit = Hint[float, Meta(ge=0, le=1)]

# Memory that a pixel of WebP takes while decoded, against one of JPEG or PNG: its reader holds
# two canvases and a copy. So fewer of them are taken.
WEBP_COST = 1.7
# A JPEG may come in scans, each a walk over all its pixels. Encoders write ten, of CMYK 18.
MAX_SCANS = 64
MAX_SCANS_OF_LARGEST = 18  # where there are as many pixels as are allowed
MAIN_IMAGE = "image"  # the part that is annotated; prompts may lie on others and name them


class _Prompt(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    label: Label = "object"
    negative: bool = False
    image: Label = MAIN_IMAGE

    @property
    def type(self) -> PromptType:
        """The prompt's kind, as it stands in JSON."""
        return self.__struct_config__.tag  # type: ignore[return-value]


class BoxPrompt(_Prompt, frozen=True, tag="box"):
    """A box round one example."""

    box: Box


class PointPrompt(_Prompt, frozen=True, tag="point"):
    """A point on one example; the model infers its extent."""

    point: tuple[float, float]


class TextPrompt(_Prompt, frozen=True, tag="text", kw_only=True):
    """Words for what to find. Without a label its finds are called by them."""

    text: Hint[str, Meta(min_length=1, max_length=1000)]
    label: Hint[str, Meta(max_length=200)] = ""

    def __post_init__(self) -> None:
        if not self.label:
            msgspec.structs.force_setattr(self, "label", self.text[:200])


class EmbeddingPrompt(_Prompt, frozen=True, tag="embedding"):
    """What ``task: "embed"`` answered before, base64."""

    data: Hint[str, Meta(min_length=1, max_length=1_000_000)]


Prompt = BoxPrompt | PointPrompt | TextPrompt | EmbeddingPrompt


class Request(Struct, frozen=True, forbid_unknown_fields=True):
    """What to do with an image. Everything is optional; None means the model's own default.

    `match` and `turned` are for models that are shown examples: "strict" asks for this very thing,
    "kind" for other individuals of its kind, too; with `turned` false, only what stands about as
    the example does is meant.
    """

    model: Hint[str, Meta(min_length=1, max_length=100)] | None = None
    task: Task = "detect"
    prompts: Hint[tuple[Prompt, ...], Meta(max_length=32)] = ()
    outputs: Hint[tuple[Output, ...], Meta(min_length=1, max_length=3)] = ("box",)
    min_score: Unit | None = None
    nms_iou: Unit | None = None
    max_annotations: Hint[int, Meta(ge=1, le=3000)] = 300
    match: Match = "normal"
    turned: bool = True
    priority: Literal["interactive", "bulk"] = "interactive"


class ModelInfo(Struct, frozen=True):
    """A model as ``/v1/models`` shows it.

    `labels` is empty where the prompts bring the labels. `min_score` and `nms_iou` are what a
    request gets that names none. `problem` says why the model cannot serve, if it cannot.
    """

    name: str
    version: str
    labels: list[str]
    tasks: list[Task]
    prompts: list[PromptType]
    outputs: list[Output]
    min_score: float
    nms_iou: float
    licence: str
    ready: bool = True
    problem: str | None = None


class Size(Struct, frozen=True):
    """Pixels of the image as displayed."""

    width: int
    height: int


class ModelRef(Struct, frozen=True):
    """Which model made a result."""

    name: str
    version: str


class Timing(Struct, frozen=True):
    """Where a job's time went, in milliseconds."""

    queued_ms: float
    decode_ms: float
    infer_ms: float
    batch_size: int


class Mask(Struct, frozen=True):
    """COCO compressed run-length encoding of a full-image mask; size is ``[height, width]``."""

    size: tuple[int, int]
    counts: str


class Annotation(Struct, frozen=True, omit_defaults=True):
    """One find. Keypoints are ``[x, y, visibility]`` with COCO's visibility 0, 1 or 2."""

    label: str
    score: float
    box: Box
    mask: Mask | None = None
    keypoints: list[tuple[float, float, int]] | None = None


class Annotated(Struct, frozen=True, tag="annotated", tag_field="outcome", omit_defaults=True):
    """The result of ``task: "detect"``, best score first.

    `suggested_min_score` is where this picture's finds part, if the model can tell: a `min_score`
    to filter or to ask with.
    """

    image: Size
    model: ModelRef
    annotations: list[Annotation]
    timing: Timing
    suggested_min_score: float | None = None


class Embedded(Struct, frozen=True, tag="embedded", tag_field="outcome"):
    """The result of ``task: "embed"``: a portable prompt, base64."""

    model: ModelRef
    embedding: str
    timing: Timing


class Failed(Struct, frozen=True, tag="failed", tag_field="outcome"):
    """The job cannot be done; becomes a problem document when it is fetched."""

    status: int
    code: str
    detail: str

    def problem(self) -> Problem:
        return Problem(self.status, self.code, self.detail)


Result = Annotated | Embedded | Failed

_request = msgspec.json.Decoder(Request)
_EXAMPLES: dict[PromptType, str] = {
    "box": '{"type": "box", "box": [x0, y0, x1, y1]} round one example',
    "point": '{"type": "point", "point": [x, y]} on one example',
    "text": '{"type": "text", "text": "a coin"}',
    "embedding": '{"type": "embedding", "data": "…"}, as "task": "embed" answers',
}


def parse_request(text: bytes | str) -> Request:
    """Read a request from JSON.

    Raises:
        Problem: 400 ``malformed_request`` when it is not JSON, 422 ``invalid_request`` when it is
            JSON that the contract does not know; the detail names the place.
    """
    try:
        request = _request.decode(text)
    except msgspec.ValidationError as error:
        raise unprocessable("invalid_request", f"The request does not fit: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Problem(
            400, "malformed_request", "The request is not valid JSON. See /docs for its form."
        ) from None
    _check_boxes(request)
    return request


def _check_boxes(request: Request) -> None:
    """Refuse boxes without an inside (422 ``box_inverted``)."""
    for number, prompt in enumerate(request.prompts):
        if not isinstance(prompt, BoxPrompt):
            continue
        x0, y0, x1, y1 = prompt.box
        if x1 <= x0 or y1 <= y0:
            raise unprocessable(
                "box_inverted",
                f"$.prompts[{number}].box must be [x0, y0, x1, y1] with x0 < x1 and y0 < y1, in "
                "pixels.",
            )


def check_parts(request: Request, parts: Collection[str]) -> None:
    """Refuse prompts on images that are not there (422 ``image_missing``)."""
    if MAIN_IMAGE not in parts:
        raise unprocessable("image_missing", f"There is no image named `{MAIN_IMAGE}`.")
    for number, prompt in enumerate(request.prompts):
        if prompt.image not in parts:
            raise unprocessable(
                "image_missing", f"$.prompts[{number}].image names a part that was not sent."
            )


def check_inside(request: Request, part: str, size: Size) -> None:
    """Refuse prompts that lie on image `part` and reach outside its `size`.

    A pixel of tolerance is given, because tools round boxes outwards.

    Raises:
        Problem: 422 ``box_outside_image`` or ``point_outside_image``.
    """
    for number, prompt in enumerate(request.prompts):
        if prompt.image != part or not isinstance(prompt, BoxPrompt | PointPrompt):
            continue
        kind = prompt.type
        numbers = prompt.box if isinstance(prompt, BoxPrompt) else prompt.point
        xs, ys = numbers[0::2], numbers[1::2]
        if min(numbers) < -1 or max(xs) > size.width + 1 or max(ys) > size.height + 1:
            raise unprocessable(
                f"{kind}_outside_image",
                f"$.prompts[{number}].{kind} reaches outside its image, which is "
                f"{size.width} x {size.height} pixels as displayed (EXIF orientation applied).",
            )


def check_scans(scans: int, size: Size, max_pixels: int) -> None:
    """Refuse a JPEG that would take many times as long as its pixels should (413
    ``too_many_scans``).

    Args:
        scans: how many there are, or at least are.
        max_pixels: most pixels that an image may have.
    """
    pixels = max(1, size.width * size.height)
    allowed = min(MAX_SCANS, MAX_SCANS_OF_LARGEST * max_pixels // pixels)
    if scans > allowed:
        raise Problem(
            413,
            "too_many_scans",
            f"The JPEG comes in more than the {allowed} scans that are taken of "
            f"{size.width} x {size.height} pixels. Save it again, as baseline or as PNG.",
        )


def check_model(request: Request, model: ModelInfo) -> None:
    """Refuse what `model` cannot do with `request`.

    Raises:
        Problem: 422 with the reason and what the model does take, 503 if it cannot serve at all.
    """
    if not model.ready:
        raise Problem(503, "model_not_ready", model.problem or "The model is not ready.")
    if request.task not in model.tasks:
        raise unprocessable(
            "task_unsupported", f"Model {model.name} has the tasks {_list(model.tasks)}."
        )
    for output in request.outputs:
        if output not in model.outputs:
            raise unprocessable(
                "output_unsupported", f"Model {model.name} has the outputs {_list(model.outputs)}."
            )
    for number, prompt in enumerate(request.prompts):
        if prompt.type not in model.prompts:
            raise unprocessable(
                "prompt_unsupported",
                f"$.prompts[{number}] is of type {prompt.type}; model {model.name} takes "
                + (_list(model.prompts) if model.prompts else "no prompts, it has fixed labels")
                + ".",
            )
    if model.prompts and not any(not prompt.negative for prompt in request.prompts):
        raise unprocessable(
            "prompt_missing",
            f"Model {model.name} needs to be told what to look for: add a prompt that is not "
            f"negative, such as {_EXAMPLES[model.prompts[0]]}.",
        )


def _list(names: list[Any]) -> str:
    return ", ".join(names)
