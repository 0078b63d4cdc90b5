"""docs/batch.md, run as it is written, with a model that costs nothing."""

import asyncio
import json
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest

from tests.batch.conftest import coco, paint

DOCS = (Path(__file__).parents[2] / "docs" / "batch.md").read_text()
SIZE = (384, 303)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """What somebody has who reads the page."""
    for number in range(1, 7):
        paint(tmp_path / "products" / f"{number:02}.jpg", number, SIZE)
        paint(tmp_path / f"scene-{number}.png", number, SIZE)
    for number in (1, 2):
        paint(tmp_path / "plates" / f"p{number}.png", number, SIZE)
    with zipfile.ZipFile(tmp_path / "shelf.zip", "w") as archive:
        for path in sorted(tmp_path.glob("scene-*.png")):
            archive.write(path, path.name)
            path.unlink()
    return tmp_path


def blocks(section: str, language: str) -> list[str]:
    text = DOCS.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.+?)```", text, re.DOTALL)


async def shell(text: str, url: str, folder: Path) -> str:
    """One block in a shell where `mayfly` is this one, and the service is here."""
    command = f'mayfly() {{ "{sys.executable}" -m scripts.cli "$@"; }}\nset -e\n{text}'
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        command.replace("http://127.0.0.1:8080", url),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_my_product_from_three_boxes(url: str, desk: Path) -> None:
    look, rest, check = blocks("Label 500 pictures of my product from three boxes", "sh")
    await shell(look, url, desk)
    assert len(list((desk / "dataset/preview").iterdir())) == 3
    assert len(list((desk / "dataset/labels").rglob("*.txt"))) == 3
    await shell(rest.replace("-o dataset/", "-o dataset/ 2>log"), url, desk)
    assert "3 of 6 images are finished" in (desk / "log").read_text()
    assert len(list((desk / "dataset/labels").rglob("*.txt"))) == 6
    assert len(list((desk / "dataset/images").rglob("*.jpg"))) == 6
    assert (desk / "dataset/data.yaml").read_text().endswith('names:\n  0: "product"\n')
    hand = {
        "images": [{"id": n, "file_name": f"{n:02}.jpg"} for n in range(1, 4)],
        "categories": [{"id": 1, "name": "product"}],
        "annotations": [],
    }
    (desk / "hand.json").write_text(json.dumps(hand))
    assert "best F1" in await shell(check, url, desk)
    assert (desk / "report/worst.png").exists()


async def test_pre_labels_for_cvat(url: str, desk: Path) -> None:
    """The labels that were made by hand, three scenes of six, stay out of the second run."""
    label, rest = blocks("Pre-label for CVAT", "sh")
    await shell(label, url, desk)
    assert (desk / "cvat.xml").read_text().count("<image ") == 6
    label = label.replace("cvat.xml", "all.json").replace("--format cvat", "--format coco")
    await shell(label, url, desk)
    data = json.loads((desk / "all.json").read_text())
    data["images"] = data["images"][:3]
    ids = {image["id"] for image in data["images"]}
    data["annotations"] = [each for each in data["annotations"] if each["image_id"] in ids]
    (desk / "done.json").write_text(json.dumps(data))
    await shell(rest, url, desk)
    names = re.findall(r'<image [^>]*name="([^"]+)"', (desk / "rest.xml").read_text())
    assert names == ["scene-4.png", "scene-5.png", "scene-6.png"]
    assert len(coco(desk / "all.json")) == 6


async def test_colonies_to_csv(url: str, desk: Path) -> None:
    (count,) = blocks("Count colonies to CSV", "sh")
    await shell(count, url, desk)
    assert (desk / "counts.csv").read_text().split() == ["image,colony", "p1.png,2", "p2.png,3"]


async def test_from_python(url: str, desk: Path) -> None:
    (program,) = blocks("From Python", "python")
    (desk / "program.py").write_text(program.replace("http://127.0.0.1:8080", url))
    out = await shell(f'"{sys.executable}" program.py', url, desk)
    assert sorted(out.split("\n")) == ["", "p1.png 2", "p2.png 3"]


def test_the_page_names_all_formats() -> None:
    from scripts.dataset import KINDS

    table = DOCS.split("| format | what is written |")[1]
    assert set(KINDS) <= set(re.findall(r"`([a-z-]+)`", table))
