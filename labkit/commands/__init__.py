"""The command line's rooms: what each command takes (`options`) and does.

    options        a frozen dataclass per command; the CLI is made from them
    shell          progress, atomic folders, opening models: what the commands share
    pretraining    text -> tokenizer -> tokens -> the loop -> model/
    tasks          what a fine-tuning run learns from: files and corpora as examples
    finetuning     a task -> the loop -> scores -> model/
    inspecting     generate and evaluate
    doctor         what this machine is, what is missing, what to do

Importing this package imports none of them: `labkit --help` needs `options` alone.
"""
