"""Charts are written at the size that was asked for, and their labels do not cover one another."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dcr_ray.report.canvas import BLUE, GREEN, VERMILLION, label_points, light_sheet
from dcr_ray.report.objective_charts import draw_layer_depth, draw_pareto
from dcr_ray.report.search_charts import draw_importance
from dcr_ray.report.time_chart import draw_time
from tests.report_trials import THREE, TWO, baseline, failed_trial, many_trials, search_trial


def pixels(path) -> np.ndarray:
    import matplotlib.image

    return matplotlib.image.imread(path)[..., :3]


def count_of(image: np.ndarray, colour: str) -> int:
    wanted = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return int((np.abs(image - wanted).max(axis=-1) < 0.02).sum())


@pytest.mark.parametrize("count", [7, 60])
def test_the_plane_of_two_objectives_shows_the_front_and_the_baseline_on_a_light_sheet(tmp_path, count):
    image = pixels(draw_pareto(many_trials(count), TWO, tmp_path / "pareto.png"))
    assert image.shape == (900, 1200, 3)
    assert image[0, 0].min() == 1.0 and np.median(image) == 1.0
    assert count_of(image, BLUE) > 300 and count_of(image, VERMILLION) > 200


def test_infeasible_trials_are_hollow(tmp_path):
    pair = [search_trial("a", 30, 50), search_trial("b", 50, 30)]
    filled = pixels(draw_pareto([*pair, search_trial("c", 20, 20)], TWO, tmp_path / "filled.png"))
    hollow = pixels(draw_pareto([*pair, search_trial("c", 20, 20, feasible=False)], TWO, tmp_path / "hollow.png"))
    assert count_of(hollow, "#7A8490") < count_of(filled, "#7A8490") / 2


def test_three_objectives_make_a_panel_for_each_pair(tmp_path):
    assert pixels(draw_pareto(many_trials(7), THREE, tmp_path / "pareto.png")).shape == (780, 2250, 3)


def test_one_objective_is_drawn_in_the_order_of_the_trials(tmp_path):
    image = pixels(draw_pareto(many_trials(7), {"compliance": "maximize"}, tmp_path / "pareto.png"))
    assert image.shape == (900, 1200, 3) and count_of(image, BLUE) > 50


def test_charts_with_nothing_to_show_are_not_written(tmp_path):
    path = tmp_path / "chart.png"
    assert draw_pareto([failed_trial("t")], TWO, path) is None
    assert draw_layer_depth([baseline(), search_trial("a"), search_trial("b")], TWO, path) is None
    assert draw_importance({"compliance": {"a": float("nan")}}, path) is None
    assert draw_time([], path) is None and draw_time([search_trial("a", wall=None, ledger={})], path) is None
    assert not path.exists()


def test_layer_depth_has_the_baseline_as_a_line_across_each_panel(tmp_path):
    image = pixels(draw_layer_depth(many_trials(20), TWO, tmp_path / "depth.png"))
    assert image.shape == (630, 1320, 3)
    for panel in (image[:, :660], image[:, 660:]):
        assert max(count_of(row, VERMILLION) for row in panel) > 500


def test_importance_shows_parameters_in_a_common_order(tmp_path):
    shares = {"compliance": {"depth": 0.7, "margin": 0.3}, "defense": {"depth": 0.4, "margin": 0.6}}
    assert count_of(pixels(draw_importance(shares, tmp_path / "importance.png")), BLUE) > 5_000


def test_a_bar_has_the_length_of_its_parts_and_what_they_leave_of_the_wall_clock(tmp_path):
    parts = {"forward_backward": 30.0, "decode": 60.0}
    image = pixels(draw_time([search_trial("t", ledger=parts, wall=100.0)], tmp_path / "time.png"))
    row = image[int(image.shape[0] * 0.62)]
    passes, decode, rest = (count_of(row, colour) for colour in (BLUE, GREEN, VERMILLION))
    assert decode == pytest.approx(2 * passes, rel=0.02) and rest == pytest.approx(passes / 3, rel=0.05)


def test_parts_without_time_are_not_in_the_legend_and_overlap_is_not_drawn(tmp_path):
    counted_twice = search_trial("t", ledger={"forward_backward": 60.0, "decode": 60.0}, wall=100.0)
    assert count_of(pixels(draw_time([counted_twice], tmp_path / "time.png")), VERMILLION) == 0


def test_the_chart_of_time_grows_with_the_trials_and_stops_at_sixty(tmp_path):
    heights = [pixels(draw_time(many_trials(count), tmp_path / f"{count}.png")).shape[0] for count in (3, 30, 59, 90)]
    assert heights[0] < heights[1] < heights[2] == heights[3]


def test_labels_cover_neither_points_nor_one_another(tmp_path):
    generator = random.Random(3)
    points = [(generator.random(), generator.random()) for _ in range(40)]
    with light_sheet(8, 6, tmp_path / "labels.png") as figure:
        axes = figure.subplots()
        axes.plot(*zip(*points, strict=True), "o", markersize=6)
        notes = label_points(axes, {point: f"trial-{place:03d}" for place, point in enumerate(points)}, points)
        boxes = [note.get_window_extent() for note in notes]
        centres = axes.transData.transform(points)
        assert len(boxes) > 20
        assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
        assert not any(box.contains(*centre) for box in boxes for centre in centres)


def test_a_label_without_room_is_left_out(tmp_path):
    with light_sheet(4, 3, tmp_path / "labels.png") as figure:
        axes = figure.subplots()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        crowd = {(0.5 + place / 1e4, 0.5): f"a rather long name {place}" for place in range(60)}
        assert 0 < len(label_points(axes, crowd, list(crowd))) < 60


def test_dollar_signs_and_foreign_letters_in_names_do_not_break_a_chart(tmp_path, recwarn):
    trials = [search_trial("$x^{$ 試行", 40, 41, 0.3), search_trial("b$$", 45, 30, 0.6)]
    assert draw_pareto(trials, TWO, tmp_path / "pareto.png")
    assert draw_time(trials, tmp_path / "time.png")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
