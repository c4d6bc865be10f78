"""Reports and metrics of every kind of task: each in its unit, with its own direction; metrics equal to scikit-learn's."""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from test_report import make_run, png_pixels, text_of

from ldp_search.runner.report import write_report
from ldp_search.runner.report.comparison import metrics_of, scatter_figure
from ldp_search.runner.report.groups import group_runs
from ldp_search.runner.report.load import load_run
from ldp_search.runner.tasks import metrics


def of_metric(folder, name: str, values: list[float], seed: int = 0, words=()):
    """A run whose metric is another one."""
    make_run(folder, seed=seed, words=words)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("accuracy")
        if row["split"] == "eval":
            row[name] = values[0]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads((folder / "result.json").read_text())
    result.pop("accuracy")
    (folder / "result.json").write_text(json.dumps(result | {"metric": name, name: values[1]}))
    return folder


def test_a_perplexity_is_no_percentage(tmp_path, unpainted):  # noqa: F811
    folder = of_metric(tmp_path / "run", "perplexity", [99.0, 87.654])
    text = text_of(write_report([folder], folder))
    assert "Perplexity per token 87.65 of the finished model" in text and "Accuracy" not in text
    (folder / "result.json").unlink()
    assert load_run(folder).metric_name == "perplexity" and load_run(folder).score == 99.0


def test_runs_side_by_side_in_their_metric(tmp_path, unpainted):  # noqa: F811
    folders = [of_metric(tmp_path / f"run{s}", "mean_iou", [0.3, 0.5 + 0.02 * s], seed=s) for s in (0, 1)]
    text = text_of(write_report(folders, tmp_path / "both"))
    assert "Mean IoU against cost" in text and "51.00 ± 1.41 %" in text
    folders = [of_metric(tmp_path / f"lm{s}", "perplexity", [90, 80.0 + 4 * s], seed=s) for s in (0, 1)]
    text = text_of(write_report(folders, tmp_path / "lms"))
    assert "Perplexity per token against cost" in text and "82 ± 2.8" in text


def test_predictions_are_shown(tmp_path, unpainted):  # noqa: F811
    folder = make_run(tmp_path / "run")
    (folder / "examples.png").write_bytes(bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010806000000"))
    (folder / "examples.png.txt").write_text("Picture, truth and prediction of three samples\n")
    text = text_of(write_report([folder], folder))
    assert "Predictions" in text and "Picture, truth and prediction of three samples" in text


def test_which_way_is_better():
    assert metrics.metric("accuracy").better(0.9, 0.8) and not metrics.metric("perplexity").better(90, 80)
    assert metrics.metric("accuracy").show(0.98765) == "98.77%" and metrics.metric("perplexity").show(87.654) == "87.65"
    assert metrics.metric("my_own").better(2, 1) and metrics.metric("my_own").title == "my_own"


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_scikit_learns_and_scipys(classes, seed):
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, 200)
    predicted = np.where(random.random(200) < 0.6, truth, random.integers(0, classes, 200))
    halves = [slice(0, 70), slice(70, 200)]  # a confusion matrix adds over batches
    matrix = sum(metrics.confusion(torch.tensor(truth[h]), torch.tensor(predicted[h]), classes) for h in halves)
    assert np.array_equal(matrix, sk.confusion_matrix(truth, predicted))
    assert metrics.accuracy(matrix) == pytest.approx(sk.accuracy_score(truth, predicted))
    assert metrics.matthews(matrix) == pytest.approx(sk.matthews_corrcoef(truth, predicted))
    assert metrics.f1(matrix) == pytest.approx(sk.f1_score(truth == 1, predicted == 1))
    assert metrics.ious(matrix).tolist() == pytest.approx(sk.jaccard_score(truth, predicted, average=None))
    x, y = truth + 0.1 * random.random(200).round(1), random.random(200).round(1) + truth / 5
    assert metrics.pearson(torch.tensor(x), torch.tensor(y)) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert metrics.spearman(torch.tensor(x), torch.tensor(y)) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_metrics_where_a_class_is_absent():
    empty = torch.tensor([[3, 0, 0], [0, 0, 0], [1, 0, 2]])
    assert metrics.ious(empty).isnan().tolist() == [False, True, False]
    one_sided = torch.tensor([[4, 0], [0, 0]])
    assert metrics.matthews(one_sided) == 0.0 == sk.matthews_corrcoef([0] * 4, [0] * 4) and metrics.f1(one_sided) == 0.0


def test_different_metrics_have_axes_of_their_own(tmp_path, unpainted):
    folders = [
        of_metric(tmp_path / "seg", "mean_iou", [0.3, 0.5]),
        of_metric(tmp_path / "lm", "perplexity", [90, 80.0], words=["lr=0.2"]),
    ]
    page = write_report(folders, tmp_path / "both")
    assert "different metrics, each with an axis of its own" in text_of(page)
    groups = group_runs([load_run(folder) for folder in folders])
    assert [metric.title for metric in metrics_of(groups)] == ["Mean IoU", "Perplexity per token"]
    alone, both = (png_pixels(scatter_figure(some)) for some in (groups[:1], groups))
    assert len(both) > 1.8 * len(alone)
