"""For teachers: pages to hand out, and the grading of what comes back.

    handout.py   a page without outputs and solutions, with nbgrader's metadata; the teacher's edition
    grading.py   a folder of submissions: who solved what
    answering.py one submission's cells, and the answers that they give as plain data
    sandbox.py   a process with limits, without network, that can damage nothing
"""
