"""The measured machine: its description, its peak rates, and its GPU's clocks and energy."""
