"""Every claim of effect: arms, paired retraining, statistics, metrics, truth for scores, transfer, caveats."""
