"""What a user sees in the terminal: tables, logs, interrupts."""
