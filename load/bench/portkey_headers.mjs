// Portkey 1.15.2 adds headers to what fetch() answered. With the releases of @hono/node-server that npm finds for it those are
// immutable, and every stream is a 500. A copy that can be changed costs some microseconds for each request, and it works.
const fetched = globalThis.fetch;
globalThis.fetch = async (...given) => {
	const answer = await fetched(...given);
	Object.defineProperty(answer, "headers", { value: new Headers(answer.headers) });
	return answer;
};
