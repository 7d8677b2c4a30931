"""What is claimed about speed, runnable by anyone. Ratios against peers, measured side by side."""
