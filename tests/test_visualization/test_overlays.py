"""Overlays, pixel by pixel against loops."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage.color import rgb2xyz

from mmconvnextv2.visualization.overlays import (
    CLASS_COLOURS,
    contact_sheet,
    draw_caption,
    draw_instances,
    draw_semantic_map,
    place_tags,
)

pytestmark = pytest.mark.unit


def grey(height: int = 6, width: int = 8, value: int = 100) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), value, np.uint8))


def test_semantic_map_tints_classes_and_leaves_the_rest() -> None:
    labels = np.zeros((6, 8), np.int64)
    labels[1:3, 2:5] = 1
    labels[4, 4] = 255
    picture = np.asarray(draw_semantic_map(grey(), labels, [[0, 0, 0], [200, 0, 50]], scale=2))
    for y in range(12):
        for x in range(16):
            tinted = labels[y // 2, x // 2] == 1
            expected = [0.55 * 100 + 0.45 * c for c in (200, 0, 50)] if tinted else [100] * 3
            np.testing.assert_allclose(picture[y, x], expected, atol=0.51)


def test_instances() -> None:
    masks = np.zeros((1, 80, 80), bool)
    masks[0, 40:60, 40:60] = True
    boxes = np.array([[40.0, 40.0, 60.0, 60.0]])
    picture = np.asarray(draw_instances(grey(80, 80), boxes, masks, ["7"], [3], scale=2))
    assert picture.shape == (160, 160, 3)
    assert (picture[100, 100] != 100).any(), "inside the mask"
    assert tuple(picture[80, 115]) == (0, 130, 200), "the upper edge of the box, in its colour"
    assert tuple(picture[79, 80]) == (0, 130, 200), "the tag, above the box"
    assert (picture[130:, 130:] == 100).all(), "far from it"


def tag_in(
    picture: np.ndarray, boxes: np.ndarray, colours: list[int], wanted: int = 0
) -> tuple[slice, slice]:
    """Rows and columns of one of the tags: what is in the colour of its box, and no line of it."""
    lines = Image.fromarray(np.full_like(picture, 100))
    width = max(2, round(len(picture) ** 0.5 / 10))
    for box, colour in zip(boxes, colours, strict=True):
        corners = np.minimum(box, len(picture) - 1).tolist()
        ImageDraw.Draw(lines).rectangle(corners, outline=CLASS_COLOURS[colour], width=width)
    added = (picture != np.asarray(lines)).any(-1)
    y, x = np.nonzero(added & (picture == CLASS_COLOURS[colours[wanted]]).all(-1))
    return slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1)


@pytest.mark.parametrize("corner", [(60, 60), (0, 0), (150, 0), (0, 150), (150, 150)])
@pytest.mark.parametrize("second", [(0, 0), (3, 2), (20, 5), (0, 15)])
def test_tags_of_two_boxes_that_overlap_are_both_whole(
    corner: tuple[int, int], second: tuple[int, int]
) -> None:
    x, y = corner
    boxes = np.array([[x, y, x + 40, y + 40]] * 2, dtype=float)
    boxes[1] += (second * 2)[:4]
    nothing = np.zeros((2, 200, 200), bool)
    texts = ["digit_3 0.91", "digit_8 0.87"]
    picture = np.asarray(draw_instances(grey(200, 200), boxes, nothing, texts, [3, 2], scale=1))
    covered = np.zeros((200, 200), int)
    for i, colour in enumerate((3, 2)):
        rows, columns = tag_in(picture, boxes, [3, 2], i)
        covered[rows, columns] += 1
        tag = picture[rows, columns]
        edge = np.concatenate([tag[0], tag[-1], tag[:, 0], tag[:, -1]])
        assert (edge == CLASS_COLOURS[colour]).all(), "neither covered nor is its text cut off"
        assert tag.shape[0] >= 12 and tag.shape[1] >= 4 * tag.shape[0]
    assert covered.max() == 1


def test_tags_lie_inside_and_cover_the_least() -> None:
    rng = np.random.default_rng(0)
    collisions = 0
    for _ in range(50):
        corners = rng.uniform(0, 260, (8, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(20, 60, (8, 2))], axis=1)
        sizes = [(int(rng.integers(30, 60)), 15) for _ in boxes]
        covered = np.zeros((320, 320), int)
        tags = place_tags(boxes, sizes, (320, 320))
        for (left, top, right, bottom), size in zip(tags, sizes, strict=True):
            assert 0 <= left and 0 <= top and right <= 320 and bottom <= 320
            assert (right - left, bottom - top) == size
            covered[top:bottom, left:right] += 1
        collisions += int(covered.max() > 1)
    assert collisions <= 1, "eight boxes leave room for their tags"


def test_where_every_place_is_taken_a_tag_covers_the_least() -> None:
    boxes = np.array([[0.0, 0.0, 30.0, 20.0]] * 4)
    tags = place_tags(boxes, [(30, 10)] * 4, (30, 20))
    covered = np.zeros((20, 30), int)
    for left, top, right, bottom in tags:
        covered[top:bottom, left:right] += 1
    assert (covered == 2).all(), "four tags in the room of two"


@pytest.mark.parametrize("colour", range(len(CLASS_COLOURS)))
def test_text_is_readable_on_the_colour_of_its_class(colour: int) -> None:
    box, nothing = np.array([[60.0, 60.0, 160.0, 160.0]]), np.zeros((1, 200, 200), bool)
    picture = draw_instances(grey(200, 200), box, nothing, ["digit_8 0.87"], [colour], scale=1)
    tag = np.asarray(picture)[tag_in(np.asarray(picture), box, [colour])]
    inks = [ink for ink in ((0, 0, 0), (255, 255, 255)) if (tag == ink).all(-1).sum() > 20]
    assert len(inks) == 1
    # WCAG 2.2 asks for 4.5; the relative luminance is Y of CIE XYZ.
    ink, ground = (
        float(rgb2xyz(np.array([[rgb]], np.uint8))[0, 0, 1])
        for rgb in (inks[0], CLASS_COLOURS[colour])
    )
    assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5


def test_a_long_text_is_written_smaller_and_not_cut_off() -> None:
    box, nothing = np.array([[50.0, 50.0, 70.0, 70.0]]), np.zeros((1, 80, 80), bool)
    text = "a name of a class that is long"
    picture = np.asarray(draw_instances(grey(80, 80), box, nothing, [text], [3], scale=1))
    tag = picture[tag_in(picture, box, [3])]
    assert tag.shape[1] <= 80
    ink = np.nonzero((np.abs(tag - np.array(CLASS_COLOURS[3])) > 40).any((0, 2)))[0]
    assert 0 < ink.min() and 40 < ink.max() < tag.shape[1] - 1


@pytest.mark.parametrize("side,least", [(240, 15), (1280, 30)])
def test_text_grows_with_the_picture(side: int, least: int) -> None:
    box, nothing = np.array([[60.0, 60.0, 160.0, 160.0]]), np.zeros((1, side, side), bool)
    picture = np.asarray(draw_instances(grey(side, side), box, nothing, ["7"], [3], scale=1))
    rows, _ = tag_in(picture, box, [3])
    assert rows.stop - rows.start >= least


def test_nothing_found_leaves_the_image() -> None:
    none = draw_instances(grey(), np.zeros((0, 4)), np.zeros((0, 6, 8), bool), [], [], scale=1)
    assert (np.asarray(none) == 100).all()


def test_caption_is_in_the_corner() -> None:
    picture = np.asarray(draw_caption(grey(60, 80), "digit_3", scale=1))
    assert (picture[:20, :40] != 100).any()
    assert (picture[30:] == 100).all()


def test_sheet() -> None:
    images = [grey(value=v) for v in (10, 20, 30)]
    sheet = np.asarray(contact_sheet(images, columns=2, gap=4))
    assert sheet.shape == (2 * 10 + 4, 2 * 12 + 4, 3)
    assert [sheet[5, 5, 0], sheet[5, 18, 0], sheet[16, 5, 0], sheet[16, 18, 0]] == [10, 20, 30, 255]
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([grey(), grey(5)], 2)
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([], 2)
