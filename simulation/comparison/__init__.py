"""What a comparison concludes: paired differences and verdicts, cross-site matrix, gains of joining, fairness, cost."""
