/** Writes a call as code to paste elsewhere. The key never enters it: $LLM_API_KEY stands for it. */

/**
 * @typedef {{model: string, messages: {role: string, content: string}[], max_tokens: number, temperature: number}} Call
 */

const KEY_NAME = "LLM_API_KEY";

/** Quote for a POSIX shell: nothing inside single quotes is special but the quote itself. */
function shellQuote(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function messageLines(messages, open, close, quoteNames) {
  const name = quoteNames ? (text) => `"${text}"` : (text) => text;
  // A JSON string is also a Python and a JavaScript string with the same value.
  return messages.map(
    ({ role, content }) =>
      `${open}${name("role")}: ${JSON.stringify(role)}, ${name("content")}: ${JSON.stringify(content)}${close},`,
  );
}

/**
 * As the page's own SSE call: `GET /stream` for a single prompt, `POST /chat` for a conversation.
 * @param {Call} call
 * @param {{base: string, withKey: boolean, singlePrompt: boolean}} options
 * `base` is the service's address with a slash at its end.
 */
export function curl(call, { base, withKey, singlePrompt }) {
  const lines = [];
  if (singlePrompt) {
    lines.push(`curl --no-buffer --get ${shellQuote(`${base}stream`)}`);
    if (withKey) lines.push(`--header "Authorization: Bearer $${KEY_NAME}"`);
    lines.push(`--data-urlencode ${shellQuote(`prompt=${call.messages.at(-1).content}`)}`);
    lines.push(`--data-urlencode ${shellQuote(`model=${call.model}`)}`);
    lines.push(`--data max_tokens=${call.max_tokens} --data temperature=${call.temperature}`);
  } else {
    lines.push(`curl --no-buffer ${shellQuote(`${base}chat`)}`);
    if (withKey) lines.push(`--header "Authorization: Bearer $${KEY_NAME}"`);
    lines.push(`--header 'Content-Type: application/json'`);
    lines.push(`--data-raw ${shellQuote(JSON.stringify({ ...call, stream: true }, null, 2))}`);
  }
  return lines.join(" \\\n  ");
}

/** @param {Call} call @param {{base: string}} options */
export function python(call, { base }) {
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(`${base}v1`)}, api_key=os.environ.get("${KEY_NAME}", "none"))`,
    "stream = client.chat.completions.create(",
    `    model=${JSON.stringify(call.model)},`,
    "    messages=[",
    ...messageLines(call.messages, "        {", "}", true),
    "    ],",
    `    max_tokens=${call.max_tokens},`,
    `    temperature=${call.temperature},`,
    "    stream=True,",
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    `        print(chunk.choices[0].delta.content or "", end="", flush=True)`,
    "",
  ].join("\n");
}

/** @param {Call} call @param {{base: string}} options */
export function javascript(call, { base }) {
  return [
    `import OpenAI from "openai";`,
    "",
    "const client = new OpenAI({",
    `  baseURL: ${JSON.stringify(`${base}v1`)},`,
    `  apiKey: process.env.${KEY_NAME} ?? "none",`,
    "});",
    "const stream = await client.chat.completions.create({",
    `  model: ${JSON.stringify(call.model)},`,
    "  messages: [",
    ...messageLines(call.messages, "    { ", " }", false),
    "  ],",
    `  max_tokens: ${call.max_tokens},`,
    `  temperature: ${call.temperature},`,
    "  stream: true,",
    "});",
    "for await (const chunk of stream) {",
    `  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");`,
    "}",
    "",
  ].join("\n");
}
