"""Emotion: perception, cognition and expression, after EiBench (MoEI, arXiv 2402.10073).

EiBench's own task list is not published in the sources we hold; the tasks here are a substitute
(inferred) on public data. Each aspect has a mean over its tasks' headlines, and one over the tasks
that are held out. `suture.suites.tasks.asked.TaskOptions` lists the options.
"""

from suture.suites.tasks.suite import TaskSuite

SUITE = TaskSuite("emotion")
