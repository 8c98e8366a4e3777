import { env } from '$env/dynamic/private';

async function forward({ request, url }) {
	const headers = new Headers(request.headers);
	// Node's fetch decompresses what it gets, and a stream is to come as it is; it sets the others itself.
	for (const name of ['accept-encoding', 'connection', 'content-length', 'host']) headers.delete(name);
	const answer = await fetch(env.UPSTREAM + url.pathname + url.search, {
		method: request.method,
		headers,
		body: request.body,
		duplex: 'half', // without it, a body that is a stream is a TypeError
		redirect: 'manual',
		signal: request.signal, // ends the stream at the application when the client has gone
	});
	// A new answer: the headers of the one that fetch gives cannot be changed, which SvelteKit does.
	return new Response(answer.body, { status: answer.status, headers: answer.headers });
}

export { forward as GET, forward as POST };
