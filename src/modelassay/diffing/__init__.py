"""What a fine-tune changed."""

from modelassay.diffing.weights import MatrixChange, WeightDiff, diff_weights

__all__ = ["MatrixChange", "WeightDiff", "diff_weights"]
