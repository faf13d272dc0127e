"""What one pod carries, searched for by load, and the chart's values that follow from it."""
