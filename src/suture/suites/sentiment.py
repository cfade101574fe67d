"""Sentiment: polarity, aspects, sarcasm, emotion in conversation, causes, scores of opinions.

Text-centric multimodal sentiment analysis (survey, arXiv 2406.08068): text is the anchor, pictures,
sound and video enter as captions or descriptions, or as the picture itself where the model sees.
Tasks are data: `suites/data/tasks/*.yaml` with `suite: sentiment`, or a YAML file of your own;
`suture list tasks` names them. `suture.suites.tasks.asked.TaskOptions` lists the options.
"""

from suture.suites.tasks.suite import TaskSuite

SUITE = TaskSuite("sentiment")
