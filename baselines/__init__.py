"""What the methods are compared with: earlier data-free methods, and reference rows."""
