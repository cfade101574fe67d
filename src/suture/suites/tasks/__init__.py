"""Text tasks as data: a task is one YAML file, and what is here runs all of them.

A task is read (`spec`), put into words (`rendering`) with solved examples (`shots`), asked in one
or several turns (`asking`), its replies are read (`parsing`), held against what is right (`gold`)
as columns (`metrics`) and summed up (`summary`). `suite` is all of it as one suite, with the
options in `asked`. `learning`, `features` and `tagging` answer without a language model; `rows`
makes a task something to train on.
"""
