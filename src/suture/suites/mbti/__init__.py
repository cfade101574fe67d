"""What the suites `personality` and `stress` are made of: dimensions, people, prompts, readers.

All of it after MBTIBench (arXiv 2412.12510, COLING 2025; official code Personality-NLP/MbtiBench,
commit b33ec40). Prompts, examples and questionnaires are in our own words.
"""
