"""Terminal output and input: tables, live progress, interrupts."""
