"""What psx costs, measured beside peers in the same run. Figures and goals: docs/performance.md."""
