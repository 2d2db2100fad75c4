// The server's answers; what it refuses comes as an Error with its own sentence.

async function answer(response) {
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw failed(response, content.error);
  return content;
}

function failed(response, sentence) {
  return Object.assign(new Error(sentence ?? `the server answered ${response.status}`), { status: response.status });
}

/** The bytes of an answer. */
export async function answerOf(response) {
  if (response.ok) return response.arrayBuffer();
  return answer(response);
}

export async function get(path, query, signal) {
  const text = query ? String(query) : "";
  return answer(await fetch(text ? `${path}?${text}` : path, { signal }));
}

export async function post(path, content) {
  const response = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
  });
  return answer(response);
}
