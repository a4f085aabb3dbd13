"""After serving: reads what was answered and what was right, and says whether the verdict still holds."""
