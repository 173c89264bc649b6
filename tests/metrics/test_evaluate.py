"""Scoring whole folders: the figure, what it was taken of, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from ggm_image.data.sources.image_files import open_source
from ggm_image.errors import UserError
from ggm_image.io.files import sha256_file
from ggm_image.metrics import METRICS
from ggm_image.metrics.bootstrap import bootstrap
from ggm_image.metrics.evaluate import evaluate
from ggm_image.metrics.feature_extractors import load_extractor
from ggm_image.metrics.fid import FeatureStatistics, frechet_distance
from ggm_image.metrics.kid import kernel_distance
from ggm_image.metrics.prdc import prdc as neighbours
from tests.features import CHANNELS, Means, matrix_of, means_extractor, paint

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture
def features(tmp_path):
    path = tmp_path / "means.pt"
    torch.jit.script(Means()).save(str(path))
    return path


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_figure_is_the_distance_of_the_features(tmp_path, features, batch_size):
    """Whatever the batch size, the last batch included. Seen to fail with the last batch dropped."""
    a = paint(tmp_path / "a", CHANNELS * 5)
    b = paint(tmp_path / "b", CHANNELS * 6, seed=1)
    report = evaluate(tmp_path / "a", tmp_path / "b", load_extractor(str(features)), batch_size=batch_size)
    expected = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
    assert report["value"] == pytest.approx(expected, rel=1e-4)
    assert report["warnings"] == []


def test_the_protocol_is_complete(tmp_path, features):
    """All that somebody needs to get the same figure, as JSON."""
    paint(tmp_path / "a", CHANNELS * 4, classes=False)
    (tmp_path / "a" / "manifest.json").write_text(json.dumps({"seed": 3, "classes": CHANNELS * 12}))
    paint(tmp_path / "b", CHANNELS * 2)
    report = json.loads(json.dumps(evaluate(tmp_path / "a", tmp_path / "b", load_extractor(str(features)))))
    assert report["metric"] == "FD (means)"
    assert report["features"] == {
        "name": str(features),
        "sha256": sha256_file(features),
        "dimension": 3,
        "resize": "inside the network",
    }
    assert (report["generated"]["n"], report["reference"]["n"]) == (12, 6)
    assert report["generated"]["sizes"] == {"8x8": 6, "9x8": 6}
    assert report["generated"]["names_sha256"] == open_source(tmp_path / "a").fingerprint()
    manifest = tmp_path / "a" / "manifest.json"
    assert report["generated"]["manifest"] == {"seed": 3, "sha256": sha256_file(manifest)}
    assert report["covariance"].startswith("unbiased")
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"ggm-image", "scipy", "clean-fid", "pillow"} <= set(report["versions"])


def test_class_accuracy(tmp_path, features):
    """By class folders, of which the generated side may lack some, and by the manifest of a flat folder.

    Seen to fail with labels of the generated side used as classes of the network (green is its 0 here).
    """
    extractor = load_extractor(str(features))
    paint(tmp_path / "b", CHANNELS * 2)
    paint(tmp_path / "a", ["green", "red"] * 4)
    assert evaluate(tmp_path / "a", tmp_path / "b", extractor)["class_accuracy"] == 1
    (tmp_path / "a" / "green" / "000.png").rename(tmp_path / "a" / "red" / "000.png")
    assert evaluate(tmp_path / "a", tmp_path / "b", extractor)["class_accuracy"] == 7 / 8
    paint(tmp_path / "flat", CHANNELS, classes=False)
    assert evaluate(tmp_path / "flat", tmp_path / "b", extractor)["class_accuracy"] is None
    asked = {"classes": ["blue", "red", "red"]}
    (tmp_path / "flat" / "manifest.json").write_text(json.dumps(asked))
    assert evaluate(tmp_path / "flat", tmp_path / "b", extractor)["class_accuracy"] == pytest.approx(2 / 3)


def test_few_pictures(tmp_path, features):
    paint(tmp_path / "a", ["red"])
    paint(tmp_path / "b", CHANNELS)
    extractor = load_extractor(str(features))
    with pytest.raises(UserError, match="at least 2 images .generated: 1"):
        evaluate(tmp_path / "a", tmp_path / "b", extractor)
    report = evaluate(tmp_path / "b", tmp_path / "b", extractor)
    assert len(report["warnings"]) == 3
    assert "3 samples for 3 features" in report["warnings"][0]
    assert "need more than 5" in report["warnings"][1]
    assert "3 of 3 classes" in report["warnings"][2]
    assert report["precision"] is None


def test_every_figure_has_its_protocol(tmp_path, features):
    """The same figures as the functions give on the same features."""
    a, b = paint(tmp_path / "a", CHANNELS * 5), paint(tmp_path / "b", CHANNELS * 6, seed=1)
    report = evaluate(tmp_path / "a", tmp_path / "b", load_extractor(str(features)), bootstrap=20, seed=4)
    sampled, real = matrix_of(a), matrix_of(b)
    assert report["kid"] == pytest.approx(kernel_distance(sampled, real, seed=4), rel=1e-4)
    prdc = {name: report[name] for name in ("precision", "recall", "density", "coverage")}
    assert prdc == pytest.approx(neighbours(sampled, real))
    assert report["neighbours"] == {"precision_recall_k": 3, "density_coverage_k": 5}
    expected = bootstrap(sampled, FeatureStatistics.of(b), report["value"], replicates=20, seed=4)
    assert report["bootstrap"]["standard_error"] == pytest.approx(expected["standard_error"], rel=1e-3)
    assert (report["bootstrap"]["replicates"], report["bootstrap"]["seed"]) == (20, 4)
    assert [(name, row["n"], row["n_reference"]) for name, row in report["per_class"].items()] == [
        (name, 5, 6) for name in CHANNELS
    ]


@pytest.mark.parametrize("metric", METRICS)
def test_chosen_metrics(metric, tmp_path, features):
    """What is not asked for is not computed: it is None. Seen to fail when the choice is not looked at."""
    paint(tmp_path / "a", CHANNELS * 3)
    report = evaluate(tmp_path / "a", tmp_path / "a", load_extractor(str(features)), metrics=[metric], bootstrap=0)
    found = {"fid": "value", "kid": "kid", "prdc": "coverage"}
    assert [name for name, key in found.items() if report[key] is not None] == [metric]
    assert report["bootstrap"] is None


def test_statistics_are_used_again(tmp_path, features):
    """The reference of one score serves the next, which gives what a score without it gives."""
    paint(tmp_path / "a", CHANNELS * 3)
    paint(tmp_path / "b", CHANNELS * 4, seed=1)
    extractor, kept = load_extractor(str(features)), tmp_path / "statistics"
    first = evaluate(tmp_path / "a", tmp_path / "b", extractor, statistics=kept, bootstrap=5)
    assert (first["generated"]["reused"], first["reference"]["reused"]) == (0, 0)
    (tmp_path / "a" / "red" / "002.png").unlink()
    again = evaluate(tmp_path / "a", tmp_path / "b", extractor, statistics=kept, bootstrap=5)
    assert (again["generated"]["reused"], again["reference"]["reused"]) == (0, 12)
    plain = evaluate(tmp_path / "a", tmp_path / "b", extractor, bootstrap=5)
    figures = ("value", "bootstrap", "kid", "precision", "per_class", "class_accuracy")
    assert {key: again[key] for key in figures} == {key: plain[key] for key in figures}
    saved = Path(again["reference"]["saved"])
    assert saved.parent == kept
    by_name = evaluate(tmp_path / "a", saved, extractor, bootstrap=5)
    assert {key: by_name[key] for key in figures} == {key: plain[key] for key in figures}
    assert by_name["reference"]["content_sha256"] == plain["reference"]["content_sha256"]


def test_saved_features_of_another_network_are_refused(tmp_path, features):
    paint(tmp_path / "a", CHANNELS)
    report = evaluate(tmp_path / "a", tmp_path / "a", load_extractor(str(features)), statistics=tmp_path / "kept")
    with pytest.raises(UserError, match="of another network .reference: means.pt .*, now means 0000"):
        evaluate(tmp_path / "a", report["reference"]["saved"], means_extractor())


def test_what_is_wrong_with_the_question(tmp_path, features):
    paint(tmp_path / "a", CHANNELS)
    for wrong, match in (
        ({"metrics": ["fid", "is"]}, "must be of fid, kid and prdc .is"),
        ({"metrics": []}, "no metrics"),
        ({"bootstrap": 1}, "at least 2 replicates"),
        ({"batch_size": 0}, "batch size"),
    ):
        with pytest.raises(UserError, match=match):
            evaluate(tmp_path / "a", tmp_path / "a", load_extractor(str(features)), **wrong)
