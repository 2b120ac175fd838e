"""The thesis's study: tables as cells to train, their queue, claims and pages; it brings ``reproduce``."""

COMMANDS = {
    "reproduce": (
        "locallearn.thesis.reproduce_command",
        "train what is missing of the thesis's tables, and draw them",
    ),
}
