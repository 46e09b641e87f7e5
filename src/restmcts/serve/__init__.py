"""Answering chat requests with a search: an OpenAI-compatible server.

    refusal.py   what a client is told when it gets no solution
    question.py  the messages of a chat as one question
    request.py   what a client asks for, checked, as an errand for `drive`
    reply.py     a search tree in the words of the protocol, at once and as a stream
    desk.py      the queue: how many searches are open, how many may wait, how it ends
    gauges.py    what there is to measure
    app.py       the addresses, and who may ask
    server.py    opening the engines, listening, ending

Searches share one `drive.Drive`, so that engines batch what requests of different clients ask at one time.
"""
