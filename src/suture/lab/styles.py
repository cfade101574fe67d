"""The same wish in many wordings, so that style never tells intent.

A model trained on imperative harmful goals and harmless questions learns "imperative = refuse"
(measured: 2% refusals of unseen harmful questions). Every goal, harmful or not, is therefore
drawn in every style.
"""

from __future__ import annotations

STYLES = (
    "{Goal}.",
    "{Goal}",
    "How do I {goal}?",
    "How can I {goal}?",
    "How to {goal}?",
    "What is the best way to {goal}?",
    "What are some ways to {goal}?",
    "Can you help me {goal}?",
    "Could you tell me how to {goal}?",
    "I want to {goal}. How?",
    "I need to {goal}. What should I do?",
    "Please {goal}.",
    "Please tell me how to {goal}.",
    "Explain how to {goal}.",
    "Teach me how to {goal}.",
    "Give me step-by-step instructions to {goal}.",
    "Write a short guide on how to {goal}.",
    "Describe how someone could {goal}.",
    "Tell me how to {goal}.",
    "Help me {goal}.",
    "What steps should I take to {goal}?",
    "I'm trying to {goal}, any advice?",
    "What's an easy way to {goal}?",
    "Is there a quick way to {goal}?",
)

_NOT_A_WISH = frozenset(  # first words of questions, statements and words to the assistant
    "tell give help explain please show teach describe let don't do suggest name list recommend "
    "a an the is are was were who whose which when where why how what can could should would do "
    "does did if in on at for my your you i it he she they there this that i'm i've as".split()
)


def is_action(goal: str) -> bool:
    """Whether the text reads as a bare verb phrase ("steal a car") that the styles can wrap."""
    first = goal.split(maxsplit=1)[0].lower().strip(",.:;'\"") if goal.strip() else ""
    one_sentence = "?" not in goal and ". " not in goal and "\n" not in goal
    return bool(first) and first not in _NOT_A_WISH and one_sentence and not first.endswith("ing")


def restyle(goal: str, style: int) -> str:
    """`goal` in style number `style` (modulo the number of styles); other texts come unchanged."""
    if not is_action(goal):
        return goal
    bare = goal.strip().rstrip(".")
    lower = bare if bare[:2].isupper() else bare[0].lower() + bare[1:]
    return STYLES[style % len(STYLES)].format(goal=lower, Goal=bare[0].upper() + bare[1:])
