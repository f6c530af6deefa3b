"""The command line's rooms: what each command takes (`options`) and does.

    options        a frozen dataclass per command; the CLI is made from them
    shell          progress, atomic folders, opening models: what the commands share
    pretraining    text -> tokenizer -> tokens -> the loop -> model/
    tasks          what a fine-tuning run learns from: files and corpora
    recipe         batch, length, updates, rate: what its user leaves open
    examples       a task as batches
    learning       what differs between learning classes and learning words
    tagging        tags of words: from files to a tagger, its scores, new texts
    questions      answers that are spans: read, learned, scored
    choices        questions with choices: which one a language model finds likeliest
    answers        a target for each source: read, learned, scored
    finetuning     a task -> the loop -> scores -> model/
    scoring        a classifier's scores beside those of simpler models
    inspecting     generate, evaluate, classify
    exporting      a model as GGUF, ONNX or safetensors, opened again
    serving        a model as a service over HTTP, and what its users left
    progress       which exercises are solved in your own notebooks
    manual         the web book's page about all of these, from what `--help` says
    doctor         what this machine is, what is missing, what to do; how a run fares

Importing this package imports none of them: `labkit --help` needs `options` alone.
"""
