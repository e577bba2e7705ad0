import numpy as np
import pytest
from sklearn import metrics

from libs.modelkit.evaluation import confusion_matrix, evaluate_classes, evaluate_numbers, softmax


def test_classes_as_scikit_learn_has_them():
    random = np.random.default_rng(0)
    truth, probabilities = random.integers(0, 4, 200), softmax(random.normal(size=(200, 4)))
    guess, figures = probabilities.argmax(1), evaluate_classes(truth, probabilities)
    assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess))
    assert figures["macro_f1"] == pytest.approx(metrics.f1_score(truth, guess, average="macro"))
    assert figures["log_loss"] == pytest.approx(metrics.log_loss(truth, probabilities))
    np.testing.assert_array_equal(confusion_matrix(truth, guess, 4), metrics.confusion_matrix(truth, guess))


def test_numbers_as_scikit_learn_has_them():
    random = np.random.default_rng(0)
    truth = random.normal(size=100)
    guess = truth + random.normal(size=100)
    figures = evaluate_numbers(truth, guess)
    assert figures["mse"] == pytest.approx(metrics.mean_squared_error(truth, guess))
    assert figures["rmse"] == pytest.approx(metrics.root_mean_squared_error(truth, guess))
    assert figures["mae"] == pytest.approx(metrics.mean_absolute_error(truth, guess))
    assert figures["r2"] == pytest.approx(metrics.r2_score(truth, guess))


def test_a_truth_that_does_not_vary_has_no_r2():
    assert "r2" not in evaluate_numbers(np.ones(3), np.zeros(3))


def test_softmax_of_extreme_logits_is_finite():
    np.testing.assert_array_equal(softmax(np.array([[1e6, -1e6]])), [[1, 0]])
