"""Colors of the terminal that are readable on black and on white.

They are among the 256, whose values are fixed: of the first 16 each terminal has its own, and green, yellow, cyan and
all bright ones are hardly visible on white in many.
"""

GOOD, BAD = "green4", "red3"
WARNING = "dark_orange3"
ALSO, THIRD = "turquoise4", "magenta3"
"""For what is neither good nor bad."""
