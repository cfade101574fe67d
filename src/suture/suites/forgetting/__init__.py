"""How well a model has forgotten: the measures of the suites `tofu` and `unlearning`.

    ks           the exact two-sample Kolmogorov–Smirnov test
    ratios       probability, truth ratio in both published forms, model utility
    overlap      ROUGE-L and BLEU of a reply with the truth; `porter` is the stemmer ROUGE uses
    memory       exact memorisation and extraction strength
    membership   membership attacks, their AUC, PrivLeak
    facts        what a model is asked: rows of question and answer, and chunks of a text
    asking       what a model says to them, as one row per item
    summary      from rows to one number each, with definition, direction and reference
    logs         published per-row logs and reference files
    probes       the model after relearning, and after 4-bit quantisation
    trajectory   readings of one measurement per epoch: first peak, fixed epoch

Everything but `asking` and `probes` works on rows alone, so that logs made elsewhere are scored by
the same code as a model here.
"""
