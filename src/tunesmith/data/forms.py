from tunesmith.data.example import Example
def detect(rows):
    v = rows[0].values
    return "text" if "text" in v else "messages" if "messages" in v else "question_answer"
def to_example(row, form, columns):
    v = row.values
    if form == "text": return Example(row.source, text=v["text"])
    if form == "messages": return Example(row.source, messages=tuple(v["messages"]))
    return Example(row.source, messages=({"role": "user", "content": v["question"]}, {"role": "assistant", "content": v["answer"]}))
