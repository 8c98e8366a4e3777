export default {
	server: {
		proxy: {
			'/events': 'http://127.0.0.1:8000',
			'/publish': 'http://127.0.0.1:8000',
		},
	},
};
